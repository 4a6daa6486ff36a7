"""The gateway's certificate: the TLS context made from it, and the names that it is for."""

from __future__ import annotations

import ssl

from cryptography import x509

from grid.errors import InvalidRequest
from grid.settings import GatewaySettings


def tls_context(settings: GatewaySettings) -> ssl.SSLContext | None:
    """TLS 1.2 or newer with the certificate of the settings; None where there is none. Raises `InvalidRequest`."""
    certificate, key = settings.tls_cert, settings.tls_key
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise InvalidRequest("TLS needs both --tls-cert and --tls-key")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise InvalidRequest(f"{certificate} and {key} are not a certificate and its key in PEM: {error}") from error
    return context


def certificate_names(settings: GatewaySettings) -> tuple[str, ...]:
    """The host names and addresses that the certificate is for; "*.example.org" stands for one label. () without one.

    Who has the certificate's key is meant to be reached at them. Raises `InvalidRequest` for a file that is no certificate.
    """
    if settings.tls_cert is None:
        return ()
    try:
        certificate = x509.load_pem_x509_certificates(settings.tls_cert.read_bytes())[0]
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{settings.tls_cert} is not a certificate in PEM: {error}") from error
    addresses = [str(address) for address in found.get_values_for_type(x509.IPAddress)]
    return (*found.get_values_for_type(x509.DNSName), *addresses)
