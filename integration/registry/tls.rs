//! TLS: who trusts whom, and what is said where somebody does not.

use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;

use super::places::mirrored;
use super::*;

/// One that issues certificates.
struct Authority {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    certificate: rcgen::Certificate,
}

impl Authority {
    fn new(name: &str) -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let certificate = params.self_signed(&key).unwrap();
        Self { issuer: rcgen::Issuer::new(params, key), certificate }
    }

    fn issue(&self, name: &str) -> (rcgen::Certificate, rcgen::KeyPair) {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }

    /// Writes a client's certificate and key as NAME.cert and NAME.key.
    fn pair(&self, dir: &Path, name: &str) -> CertificateDer<'static> {
        let (certificate, key) = self.issue(name);
        std::fs::write(dir.join(format!("{name}.cert")), certificate.pem()).unwrap();
        std::fs::write(dir.join(format!("{name}.key")), key.serialize_pem()).unwrap();
        certificate.der().clone()
    }
}

/// TLS in front of a registry, with a certificate for 127.0.0.1 by an authority of its own.
struct Front {
    host: String,
    /// The authority's certificate.
    ca: String,
    /// Of what kind the handshakes were.
    handshakes: Arc<Mutex<Vec<rustls::HandshakeKind>>>,
    /// What clients showed in those.
    shown: Arc<Mutex<Vec<CertificateDer<'static>>>>,
}

/// What a front asks its clients for.
struct Demand<'a> {
    versions: &'a [&'static rustls::SupportedProtocolVersion],
    /// Whose certificates are good, if any is asked for.
    clients: Option<&'a Authority>,
    /// Whether it says whose.
    hints: bool,
}

impl Front {
    async fn open(server: &FaultyRegistry) -> Self {
        let demand = Demand { versions: rustls::ALL_VERSIONS, clients: None, hints: false };
        Self::demanding(server, &demand).await
    }

    async fn demanding(server: &FaultyRegistry, demand: &Demand<'_>) -> Self {
        let authority = Authority::new("the front's");
        let (certificate, key) = authority.issue("127.0.0.1");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(demand.versions)
            .unwrap();
        let builder = match demand.clients {
            None => builder.with_no_client_auth(),
            Some(clients) => {
                let mut roots = rustls::RootCertStore::empty();
                roots.add(clients.certificate.der().clone()).unwrap();
                let mut verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                if !demand.hints {
                    verifier = verifier.clear_root_hint_subjects();
                }
                builder.with_client_cert_verifier(verifier.build().unwrap())
            }
        };
        let config = builder.with_single_cert(vec![certificate.der().clone()], key).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let front = Self {
            host: listener.local_addr().unwrap().to_string(),
            ca: authority.certificate.pem(),
            handshakes: Arc::default(),
            shown: Arc::default(),
        };
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        front.serve(listener, acceptor, server.host.clone());
        front
    }

    fn serve(
        &self,
        listener: tokio::net::TcpListener,
        acceptor: tokio_rustls::TlsAcceptor,
        target: String,
    ) {
        let (handshakes, shown) = (Arc::clone(&self.handshakes), Arc::clone(&self.shown));
        tokio::spawn(async move {
            while let Ok((outer, _)) = listener.accept().await {
                let (acceptor, target) = (acceptor.clone(), target.clone());
                let (handshakes, shown) = (Arc::clone(&handshakes), Arc::clone(&shown));
                tokio::spawn(async move {
                    let mut outer = match acceptor.accept(outer).into_fallible().await {
                        Ok(outer) => outer,
                        // A client that does not trust us goes away here; one that we do not trust
                        // reads so first: a connection closed on unread bytes would be reset.
                        Err((_, mut refused)) => {
                            let _ = tokio::io::copy(&mut refused, &mut tokio::io::sink()).await;
                            return;
                        }
                    };
                    let connection = outer.get_ref().1;
                    handshakes.lock().unwrap().extend(connection.handshake_kind());
                    let theirs = connection.peer_certificates().unwrap_or_default();
                    shown.lock().unwrap().extend(theirs.first().map(|c| c.clone().into_owned()));
                    let mut inner = tokio::net::TcpStream::connect(target).await.unwrap();
                    let _ = tokio::io::copy_bidirectional(&mut outer, &mut inner).await;
                });
            }
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_sessions_are_resumed_and_connections_used_again() {
    let server = FaultyRegistry::start().await;
    let digest = server.blob(noise(20_000));
    let Front { host: front, ca, handshakes, .. } = Front::open(&server).await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ca.pem");
    std::fs::write(&file, ca).unwrap();
    let host = format!("capabilities = [\"push\"]\n[host.\"https://{front}\"]\n");
    let (_root, settings) = mirrored(&server, &host);
    let settings = Settings { ca_files: vec![file], ..settings };
    let one_at_once = |registry| {
        let limits = Limits { chunk_bytes: 1024, per_image: 1, per_host: 1, global: 1 };
        let budget = Budget::new(64 << 10);
        let fetcher = Fetcher::new(registry, budget.clone(), limits);
        Fetch { budget, fetcher, recorder: Arc::new(LayerRecorder::detached()) }
    };
    let reference = reference(&server.host);

    let fetch = one_at_once(Registry::new(settings.clone()).unwrap());
    assert!(fetch.read(&reference, digest, 20_000).await.unwrap() == noise(20_000));
    let used = handshakes.lock().unwrap().len();
    // A connection comes back a moment after its last byte.
    assert!(used <= 4, "{used} handshakes for 20 requests, one at a time");

    // A host that ends every connection costs a new one each, but the keys are known.
    handshakes.lock().unwrap().clear();
    server.script(|_, reply| reply.with("Connection", "close"));
    let fetch = one_at_once(Registry::new(settings).unwrap());
    assert!(fetch.read(&reference, digest, 20_000).await.unwrap() == noise(20_000));
    let kinds = handshakes.lock().unwrap().clone();
    let resumed = kinds.iter().filter(|&&kind| kind == rustls::HandshakeKind::Resumed).count();
    assert_eq!((kinds.len(), resumed), (20, 19), "{kinds:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_wants_a_certificate_that_is_trusted() {
    let server = FaultyRegistry::start().await;
    let digest = server.blob(noise(5000));
    let Front { host: front, ca, .. } = Front::open(&server).await;
    let reference = reference(&server.host);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ca.pem");
    std::fs::write(&file, ca).unwrap();
    let only = |keys: &str| {
        let host = format!("[host.\"https://{front}\"]\n{keys}");
        mirrored(&server, &format!("capabilities = [\"push\"]\n{host}"))
    };
    let read = async |settings: Settings| {
        let fetch = Fetch::new(Registry::new(settings).unwrap(), 1024);
        fetch.read(&reference, digest, 5000).await
    };

    let (_root, settings) = only("");
    let error = registry_error(read(settings.clone()).await);
    let told = error.to_string();
    assert!(
        matches!(error, RegistryError::Client { .. }) || told.contains("`ca` in its hosts.toml"),
        "{told}"
    );
    assert!(!error.is_transient(), "{error}");
    assert!(server.requests().is_empty());
    let by_settings = Settings { ca_files: vec![file.clone()], ..settings };
    assert!(read(by_settings).await.unwrap() == noise(5000));
    let (_root, settings) = only(&format!("ca = {file:?}"));
    assert!(read(settings).await.unwrap() == noise(5000));
    let (_root, settings) = only("skip_verify = true");
    assert!(read(settings).await.unwrap() == noise(5000));
}

/// A registry behind a front, the directory with its CA and the clients' certificates, and a reader.
struct Asked {
    server: FaultyRegistry,
    front: Front,
    dir: tempfile::TempDir,
    digest: BlobDigest,
}

impl Asked {
    async fn new(demand: &Demand<'_>) -> Self {
        let server = FaultyRegistry::start().await;
        let digest = server.blob(noise(5000));
        let front = Front::demanding(&server, demand).await;
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.pem"), &front.ca).unwrap();
        Self { server, front, dir, digest }
    }

    /// Reads the blob with `client` in the hosts.toml.
    async fn read(&self, client: &str) -> Result<Vec<u8>, FetchError> {
        let dir = self.dir.path().display();
        let client = client.replace("DIR", &dir.to_string());
        let host =
            format!("[host.\"https://{}\"]\nca = \"{dir}/ca.pem\"\n{client}", self.front.host);
        let text = format!("capabilities = [\"push\"]\n{host}");
        let (_root, settings) = mirrored(&self.server, &text);
        let fetch = Fetch::new(Registry::new(settings).unwrap(), 8192);
        fetch.read(&reference(&self.server.host), self.digest, 5000).await
    }

    /// What was shown since the last call.
    fn shown(&self) -> Vec<CertificateDer<'static>> {
        std::mem::take(&mut *self.front.shown.lock().unwrap())
    }
}

const GOOD: &str = r#"["DIR/good.cert", "DIR/good.key"]"#;
const OTHER: &str = r#"["DIR/other.cert", "DIR/other.key"]"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_several_client_certificates_the_one_is_shown_that_the_server_accepts() {
    let (good, other) = (Authority::new("good"), Authority::new("other"));
    for version in rustls::ALL_VERSIONS {
        let demand = Demand { versions: &[version], clients: Some(&good), hints: true };
        let asked = Asked::new(&demand).await;
        let dir = asked.dir.path();
        let ours = good.pair(dir, "good");
        other.pair(dir, "other");
        let both = ["good.cert", "good.key"].map(|f| std::fs::read(dir.join(f)).unwrap()).concat();
        std::fs::write(dir.join("both.pem"), both).unwrap();
        for client in [
            format!("client = [{GOOD}]"),
            format!("client = [{OTHER}, {GOOD}]"),
            format!("client = [{GOOD}, {OTHER}]"),
            format!("client = [{OTHER}, \"DIR/both.pem\"]"),
            "client = \"DIR/both.pem\"".to_owned(),
        ] {
            let read = asked.read(&client).await;
            assert!(read.unwrap() == noise(5000), "{version:?} {client}");
            assert!(asked.shown() == std::slice::from_ref(&ours), "{version:?} {client}");
        }

        // None, and one by somebody else: said once, with what to do.
        for client in [String::new(), format!("client = [{OTHER}]")] {
            let before = asked.server.requests().len();
            let error = registry_error(asked.read(&client).await);
            let text = error.to_string();
            assert!(!error.is_transient(), "{version:?}: {text}");
            assert!(text.contains(&asked.front.host), "{version:?}: {text}");
            assert!(text.contains("`client` in its hosts.toml"), "{version:?}: {text}");
            assert_eq!(asked.server.requests().len(), before);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_does_not_say_whom_it_trusts_is_shown_the_first() {
    let (good, other) = (Authority::new("good"), Authority::new("other"));
    let demand = Demand { versions: rustls::ALL_VERSIONS, clients: Some(&good), hints: false };
    let asked = Asked::new(&demand).await;
    let ours = good.pair(asked.dir.path(), "good");
    other.pair(asked.dir.path(), "other");
    let read = asked.read(&format!("client = [{GOOD}, {OTHER}]")).await;
    assert!(read.unwrap() == noise(5000));
    assert_eq!(asked.shown(), [ours]);
    let error = registry_error(asked.read(&format!("client = [{OTHER}, {GOOD}]")).await);
    let text = error.to_string();
    assert!(!error.is_transient() && text.contains("`client` in its hosts.toml"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_certificate_that_cannot_be_used_is_named() {
    let good = Authority::new("good");
    let demand = Demand { versions: rustls::ALL_VERSIONS, clients: Some(&good), hints: true };
    let asked = Asked::new(&demand).await;
    good.pair(asked.dir.path(), "good");
    good.pair(asked.dir.path(), "other");
    // The second of the list, too: a mistake is not found out only when its turn comes.
    for (client, named) in [
        (r#"["DIR/good.cert", "DIR/none.key"]"#, "none.key"),
        (r#"["DIR/none.cert", "DIR/good.key"]"#, "none.cert"),
        (r#"["DIR/good.cert", "DIR/other.key"]"#, "other.key"),
        (r#""DIR/good.cert""#, "private key"),
    ] {
        let error = registry_error(asked.read(&format!("client = [{GOOD}, {client}]")).await);
        assert!(matches!(error, RegistryError::Certificate { .. }), "{error}");
        assert!(error.to_string().contains(named), "{named}: {error}");
    }
    assert!(asked.server.requests().is_empty());
}
