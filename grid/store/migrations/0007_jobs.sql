-- Federated jobs of a gateway: what each consists of, by name.
CREATE TABLE job_part (
    job TEXT NOT NULL,
    part TEXT NOT NULL,
    data BLOB NOT NULL,
    PRIMARY KEY (job, part)
);
