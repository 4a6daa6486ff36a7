"""What each operation of torch is on shares, by the functions of `grid.smpc.functions`.

Read `values` (a secret tensor with its torch dtype), `arguments` (what a kernel gets, and how a form is described), then the
forms, `elementwise`, `nonlinear`, `truth`, `views`, `products`, `reductions`, `ordering`, `layers`, `normalisations`, `losses`
and `gradients`, which `table` gathers. `page` writes the reference.
"""
