//! TLS as a host wants it: whom we trust, and which certificate of ours it is shown.
//!
//! The HTTP client takes one identity only, so its TLS is configured here. Of several client
//! certificates the first is shown that the server can check and whose chain was issued by an
//! authority that the server names; where it names none, the first that it can check. That is what
//! containerd does, which reads the same files.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{
    AlertDescription, ClientConfig, DigitallySignedStruct, DistinguishedName, SignatureScheme,
};

use super::RegistryError;

/// How many bytes of a file with certificates are read; the whole web's fit into a quarter of it.
const PEM_BYTES_MOST: u64 = 1 << 20;

/// What certificates have to do with a connection that failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// The server wants a certificate of ours, or another one than it was shown.
    ClientRefused,
    /// The server's own certificate is not trusted.
    ServerUntrusted,
}

impl Verdict {
    /// What certificates have to do with `error`, if anything.
    pub(super) fn of(error: &(dyn std::error::Error + 'static)) -> Option<Self> {
        if let Some(error) = error.downcast_ref::<rustls::Error>() {
            return Self::of_tls(error);
        }
        // An I/O error does not give what it wraps as its source, but the source of that.
        match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(wrapped) => Self::of(wrapped),
            None => error.source().and_then(Self::of),
        }
    }

    fn of_tls(error: &rustls::Error) -> Option<Self> {
        match error {
            rustls::Error::InvalidCertificate(_) => Some(Self::ServerUntrusted),
            rustls::Error::AlertReceived(
                AlertDescription::CertificateRequired
                | AlertDescription::NoCertificate
                | AlertDescription::BadCertificate
                | AlertDescription::UnsupportedCertificate
                | AlertDescription::CertificateRevoked
                | AlertDescription::CertificateExpired
                | AlertDescription::CertificateUnknown
                | AlertDescription::UnknownCA
                | AlertDescription::AccessDenied,
            ) => Some(Self::ClientRefused),
            _ => None,
        }
    }

    /// What to do about it.
    pub(super) fn way_out(self) -> &'static str {
        match self {
            Self::ClientRefused => {
                "it wants a client certificate that it trusts: name one, and its key, with `client` in its hosts.toml \
                 (client = [[\"client.cert\", \"client.key\"]]); of those named there none suits it, or it has expired"
            }
            Self::ServerUntrusted => {
                "name the authority that issued its certificate with `ca` in its hosts.toml, or let the system trust it"
            }
        }
    }
}

/// Client certificates, each with its key's file unless that is the same.
pub(super) type ClientFiles = [(PathBuf, Option<PathBuf>)];

/// TLS that trusts the system's roots and `roots`, or anybody where `skip_verify`, and shows one of
/// the certificates of `client`.
///
/// # Errors
/// Where a file of `client` cannot be used, or there is nobody to trust.
pub(super) fn configure(
    roots: Vec<CertificateDer<'static>>,
    skip_verify: bool,
    client: &ClientFiles,
) -> Result<ClientConfig, RegistryError> {
    let problem = |error: rustls::Error| RegistryError::Client { problem: error.to_string() };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier: Arc<dyn ServerCertVerifier> = if skip_verify {
        Arc::new(Anybody(Arc::clone(&provider)))
    } else {
        let extra = rustls_platform_verifier::Verifier::new_with_extra_roots;
        Arc::new(extra(roots, Arc::clone(&provider)).map_err(problem)?)
    };
    let identities: Result<Vec<_>, _> =
        client.iter().map(|(file, key)| Identity::read(file, key.as_deref(), &provider)).collect();
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(problem)?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = builder.with_client_cert_resolver(Arc::new(Identities(identities?)));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// The certificates in a file.
///
/// # Errors
/// Where it cannot be read or holds none.
pub(super) fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, RegistryError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read_pem(file)?).collect();
    let found = found.ok().filter(|all| !all.is_empty());
    found.ok_or_else(|| wrong(file, "there is no certificate in PEM form in it"))
}

fn read_pem(file: &Path) -> Result<Vec<u8>, RegistryError> {
    let size = std::fs::metadata(file).map_err(|error| wrong(file, error))?.len();
    if size > PEM_BYTES_MOST {
        return Err(wrong(file, format!("{size} bytes are too many for certificates")));
    }
    std::fs::read(file).map_err(|error| wrong(file, error))
}

fn wrong(file: &Path, problem: impl ToString) -> RegistryError {
    RegistryError::Certificate { file: file.to_owned(), problem: problem.to_string() }
}

/// A certificate of ours with its chain and key.
#[derive(Debug)]
struct Identity {
    key: Arc<CertifiedKey>,
    /// Who issued the certificates of the chain, as DER.
    issuers: Vec<DistinguishedName>,
}

impl Identity {
    fn read(
        file: &Path,
        key: Option<&Path>,
        provider: &CryptoProvider,
    ) -> Result<Self, RegistryError> {
        let chain = certificates(file)?;
        let key_file = key.unwrap_or(file);
        let key = PrivateKeyDer::from_pem_slice(&read_pem(key_file)?)
            .map_err(|_| wrong(key_file, "there is no private key in PEM form in it"))?;
        let issuer = |certificate: &CertificateDer<'_>| {
            let parsed = webpki::EndEntityCert::try_from(certificate);
            parsed.map(|parsed| DistinguishedName::in_sequence(parsed.issuer()))
        };
        let issuers: Result<_, _> = chain.iter().map(issuer).collect();
        let issuers = issuers.map_err(|error| wrong(file, format!("{error:?}")))?;
        let key = CertifiedKey::from_der(chain, key, provider).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => {
                wrong(file, format!("{} holds the key of another certificate", key_file.display()))
            }
            error => wrong(key_file, error),
        })?;
        Ok(Self { key: Arc::new(key), issuers })
    }
}

/// Our certificates, in the order of the file that names them.
#[derive(Debug)]
struct Identities(Vec<Identity>);

impl ResolvesClientCert for Identities {
    fn resolve(
        &self,
        authorities: &[&[u8]],
        schemes: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        let suits = |identity: &&Identity| {
            let known = |issuer: &DistinguishedName| authorities.contains(&issuer.as_ref());
            identity.key.key.choose_scheme(schemes).is_some()
                && (authorities.is_empty() || identity.issuers.iter().any(known))
        };
        self.0.iter().find(suits).map(|identity| Arc::clone(&identity.key))
    }

    fn has_certs(&self) -> bool {
        !self.0.is_empty()
    }
}

/// Trusts anybody, as `skip_verify` asks for.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _certificate: &CertificateDer<'_>,
        _chain: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    // Who the other one is does not matter, so neither does a proof that it is the one: a certificate
    // of the first X.509 version, which the library cannot read, is as good as any.
    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_hold_no_certificate_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ca.pem");
        std::fs::write(&file, "no certificate").unwrap();
        let error = certificates(&file).unwrap_err().to_string();
        assert!(error.contains("ca.pem"), "{error}");
        assert!(configure(Vec::new(), true, &[(file, None)]).is_err());
    }

    #[test]
    fn a_key_has_to_be_its_certificates() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: String| {
            std::fs::write(dir.path().join(name), text).unwrap();
            dir.path().join(name)
        };
        let made = rcgen::generate_simple_self_signed(vec!["one".to_owned()]).unwrap();
        let certificate = file("one.cert", made.cert.pem());
        let key = file("one.key", made.signing_key.serialize_pem());
        let other = file("other.key", rcgen::KeyPair::generate().unwrap().serialize_pem());
        let read = |key: &PathBuf| {
            configure(Vec::new(), true, &[(certificate.clone(), Some(key.clone()))])
        };
        assert!(read(&key).is_ok());
        let error = read(&other).unwrap_err().to_string();
        assert!(error.contains("one.cert") && error.contains("other.key"), "{error}");
        let error = read(&certificate).unwrap_err().to_string();
        assert!(error.contains("one.cert") && error.contains("private key"), "{error}");
    }
}
