//! Every key, its kind and its bounds. `config/hoist.toml` says what each is for.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::reader::{Document, Section};
use super::{
    Backend, Cleanup, Config, ContentStore, Cri, Fetch, History, ImageLabel, IoClass, Limits, Log,
    LogFormat, Metrics, MinFree, Mistake, OfRegistry, OnError, Priority, Pull, Registry,
    Speculation, Sync, parse_duration, parse_size,
};
use crate::units::Rate;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

/// The least limit of bandwidth, in bytes a second: below it hosts end answers that nobody reads.
const BANDWIDTH_LEAST: u64 = 64 * KIB;

/// Reads all of it.
pub(super) fn read(text: &str, defaults: Config) -> Result<Config, Vec<Mistake>> {
    let document = Document::new(text);
    let parsed = document.parse();
    let mut root = Section::root(&document, parsed.get_ref());
    let config = Config {
        root: path(&mut root, "root", defaults.root),
        socket: path(&mut root, "socket", defaults.socket),
        control_socket: path(&mut root, "control_socket", defaults.control_socket),
        drain_timeout: duration(&mut root, "drain_timeout", defaults.drain_timeout, (0, 600)),
        limits: limits(root.section("limits"), defaults.limits),
        fetch: fetch(root.section("fetch"), defaults.fetch),
        registry: registry(root.section("registry"), defaults.registry),
        cri: cri(root.section("cri"), defaults.cri),
        pull: pull(root.section("pull"), defaults.pull),
        metrics: metrics(root.section("metrics"), defaults.metrics),
        log: log(root.section("log"), defaults.log),
        history: history(root.section("history"), &defaults.history),
        cleanup: cleanup(root.section("cleanup"), &defaults.cleanup),
    };
    together(&config, &mut root);
    root.finish();
    let mistakes = document.into_mistakes();
    if mistakes.is_empty() { Ok(config) } else { Err(mistakes) }
}

/// What has to hold between keys, told at the one that is likelier to be wrong.
fn together(config: &Config, root: &mut Section<'_, '_>) {
    let socket = root.value("control_socket").or_else(|| root.value("socket"));
    if let Some(value) = socket.filter(|_| config.socket == config.control_socket) {
        value.mistake("socket and control_socket are the same");
    }
    let mut cri = root.section("cri");
    let taken = [&config.socket, &config.control_socket, &config.cri.containerd];
    if let Some(value) = cri.value("socket")
        && config.cri.socket.as_ref().is_some_and(|socket| taken.contains(&socket))
    {
        value.mistake("cri.socket is a socket that has another use");
    }
    let mut fetch = root.section("fetch");
    let mut limits = root.section("limits");
    let value = fetch.value("chunk_size").or_else(|| limits.value("memory_budget"));
    // One chunk arrives while the one before it is consumed.
    if let Some(value) = value
        && config.fetch.chunk_bytes.saturating_mul(2) > config.budget().total()
    {
        value.mistake("limits.memory_budget has to hold two chunks of fetch.chunk_size");
    }
    let value = fetch.value("backoff_max").or_else(|| fetch.value("backoff_initial"));
    if let Some(value) = value
        && config.fetch.backoff_initial > config.fetch.backoff_max
    {
        value.mistake("fetch.backoff_initial is longer than fetch.backoff_max");
    }
}

fn limits(mut section: Section<'_, '_>, defaults: Limits) -> Limits {
    let s = &mut section;
    let speculation =
        [("auto", Speculation::Auto), ("on", Speculation::On), ("off", Speculation::Off)];
    let limits = Limits {
        memory_budget_bytes: size(
            s,
            "memory_budget",
            defaults.memory_budget_bytes,
            // Less would leave nothing for pulls beside the process itself.
            (96 * MIB, 64 * GIB),
        ),
        layers_at_once: count(s, "layers_at_once", defaults.layers_at_once, 64),
        writers_per_layer: count(s, "writers_per_layer", defaults.writers_per_layer, 64),
        decompress_threads: count(s, "decompress_threads", defaults.decompress_threads, 64),
        speculative_gzip: word(s, "speculative_gzip", defaults.speculative_gzip, &speculation),
        max_unpacked_bytes: size(s, "max_unpacked", defaults.max_unpacked_bytes, (MIB, 64 * TIB)),
        // Less would keep a writer waiting for seconds with its buffers.
        disk_bytes_per_second: rate(s, "disk_rate", defaults.disk_bytes_per_second, MIB),
        min_free: min_free(s, "min_free", defaults.min_free),
        writers: Priority {
            nice: u8::try_from(number(s, "writers_nice", defaults.writers.nice.into(), (0, 19)))
                .expect("19 fits"),
            io: io_class(s, "writers_ioprio", defaults.writers.io),
        },
    };
    section.finish();
    limits
}

fn fetch(mut section: Section<'_, '_>, defaults: Fetch) -> Fetch {
    let s = &mut section;
    let fetch = Fetch {
        chunk_bytes: size(s, "chunk_size", defaults.chunk_bytes, (64 * KIB, GIB)),
        connections_per_image: count(
            s,
            "connections_per_image",
            defaults.connections_per_image,
            512,
        ),
        connections_per_host: count(s, "connections_per_host", defaults.connections_per_host, 1024),
        connections: count(s, "connections", defaults.connections, 4096),
        retries: u32::try_from(number(s, "retries", defaults.retries as usize, (0, 100)))
            .expect("100 fits"),
        backoff_initial: duration(s, "backoff_initial", defaults.backoff_initial, (0, 60)),
        backoff_max: duration(s, "backoff_max", defaults.backoff_max, (0, 600)),
        stall_timeout: duration(s, "stall_timeout", defaults.stall_timeout, (1, 3600)),
        connect_timeout: duration(s, "connect_timeout", defaults.connect_timeout, (1, 600)),
        bytes_per_second: rate(s, "bandwidth", defaults.bytes_per_second, BANDWIDTH_LEAST),
        registries: registries(s, "registries"),
    };
    section.finish();
    fetch
}

/// The tables of single registries.
fn registries(section: &mut Section<'_, '_>, key: &'static str) -> BTreeMap<String, OfRegistry> {
    let mut registries = BTreeMap::new();
    for (value, name, mut table) in section.section(key).tables() {
        if !is_host(&name) {
            value.mistake(format_args!(
                "{name:?} has to be HOST or HOST:PORT, without a scheme: [fetch.registries.\"HOST\"]"
            ));
        }
        let s = &mut table;
        let limits = OfRegistry {
            bytes_per_second: rate(s, "bandwidth", None, BANDWIDTH_LEAST),
            connections: s
                .value("connections")
                .is_some()
                .then(|| number(s, "connections", 1, (1, 1024))),
        };
        table.finish();
        registries.insert(name, limits);
    }
    registries
}

fn registry(mut section: Section<'_, '_>, defaults: Registry) -> Registry {
    let s = &mut section;
    let registry = Registry {
        hosts_dirs: paths(s, "hosts_dirs", defaults.hosts_dirs),
        docker_config: path(s, "docker_config", defaults.docker_config),
        kubernetes_secrets: paths(s, "kubernetes_secrets", defaults.kubernetes_secrets),
        ecr: word(s, "ecr", defaults.ecr, &[("auto", true), ("off", false)]),
        plain_http_hosts: hosts(s, "plain_http_hosts", defaults.plain_http_hosts),
        ca_files: paths(s, "ca_files", defaults.ca_files),
    };
    section.finish();
    registry
}

fn cri(mut section: Section<'_, '_>, defaults: Cri) -> Cri {
    let s = &mut section;
    let cri = Cri {
        socket: path_or_off(s, "socket", defaults.socket),
        containerd: path(s, "containerd", defaults.containerd),
        // A kubelet passes them again with each pull; nobody pulls for a day.
        keep: duration(s, "keep", defaults.keep, (1, 24 * 3600)),
    };
    section.finish();
    cri
}

fn pull(mut section: Section<'_, '_>, defaults: Pull) -> Pull {
    let s = &mut section;
    let words = [("fallback", OnError::Fallback), ("fail", OnError::Fail)];
    let backends =
        [("auto", Backend::Auto), ("overlay", Backend::Overlay), ("erofs", Backend::Erofs)];
    let stores = [("none", ContentStore::None), ("keep", ContentStore::Keep)];
    let pull = Pull {
        on_error: word(s, "on_error", defaults.on_error, &words),
        backend: word(s, "backend", defaults.backend, &backends),
        sync: word(s, "sync", defaults.sync, &[("none", Sync::None), ("layer", Sync::Layer)]),
        content_store: word(s, "content_store", defaults.content_store, &stores),
        deadline: duration(s, "deadline", defaults.deadline, (1, 24 * 3600)),
    };
    section.finish();
    pull
}

fn metrics(mut section: Section<'_, '_>, defaults: Metrics) -> Metrics {
    let s = &mut section;
    let words = [
        ("none", ImageLabel::None),
        ("repository", ImageLabel::Repository),
        ("reference", ImageLabel::Reference),
    ];
    let metrics = Metrics {
        address: address(s, "address", defaults.address),
        image_label: word(s, "image_label", defaults.image_label, &words),
    };
    section.finish();
    metrics
}

fn log(mut section: Section<'_, '_>, defaults: Log) -> Log {
    let s = &mut section;
    let words = [("text", LogFormat::Text), ("json", LogFormat::Json)];
    let log = Log {
        level: level(s, "level", defaults.level),
        format: word(s, "format", defaults.format, &words),
    };
    section.finish();
    log
}

fn history(mut section: Section<'_, '_>, defaults: &History) -> History {
    let history = History {
        pulls: number(&mut section, "pulls", defaults.pulls, (0, 10_000)),
        max_bytes: size(&mut section, "max_size", defaults.max_bytes, (0, GIB)),
    };
    section.finish();
    history
}

fn cleanup(mut section: Section<'_, '_>, defaults: &Cleanup) -> Cleanup {
    const WEEK_SECONDS: u64 = 7 * 24 * 3600;
    let s = &mut section;
    let cleanup = Cleanup {
        grace: duration(s, "grace", defaults.grace, (0, WEEK_SECONDS)),
        prepulled: duration(s, "prepulled", defaults.prepulled, (0, WEEK_SECONDS)),
    };
    section.finish();
    cleanup
}

fn path(section: &mut Section<'_, '_>, key: &'static str, default: PathBuf) -> PathBuf {
    let Some(value) = section.value(key) else { return default };
    let Some(text) = value.string() else { return default };
    if !text.starts_with('/') {
        value.mistake(format_args!("{text:?} has to be an absolute path"));
    }
    PathBuf::from(text)
}

fn path_or_off(
    section: &mut Section<'_, '_>,
    key: &'static str,
    default: Option<PathBuf>,
) -> Option<PathBuf> {
    match section.value(key) {
        Some(value) if value.is_word("off") => None,
        Some(_) => Some(path(section, key, PathBuf::new())),
        None => default,
    }
}

fn paths(section: &mut Section<'_, '_>, key: &'static str, default: Vec<PathBuf>) -> Vec<PathBuf> {
    let Some(value) = section.value(key) else { return default };
    let Some(texts) = value.strings() else { return default };
    for text in texts.iter().filter(|text| !text.starts_with('/')) {
        value.mistake(format_args!("{text:?} has to be an absolute path"));
    }
    texts.into_iter().map(PathBuf::from).collect()
}

fn hosts(section: &mut Section<'_, '_>, key: &'static str, default: Vec<String>) -> Vec<String> {
    let Some(value) = section.value(key) else { return default };
    let Some(texts) = value.strings() else { return default };
    for text in texts.iter().filter(|text| !is_host(text)) {
        value.mistake(format_args!("{text:?} has to be HOST or HOST:PORT, without a scheme"));
    }
    texts.into_iter().map(str::to_owned).collect()
}

/// Whether it may be HOST or HOST:PORT.
fn is_host(text: &str) -> bool {
    !text.is_empty() && !text.contains(['/', ' '])
}

/// Bytes a second, at least so many; `"off"` is none.
fn rate(
    section: &mut Section<'_, '_>,
    key: &'static str,
    default: Option<u64>,
    least: u64,
) -> Option<u64> {
    let Some(value) = section.value(key) else { return default };
    if value.is_word("off") {
        return None;
    }
    let Some(text) = value.string() else { return default };
    let bytes = match text.parse::<Rate>() {
        Ok(rate) => rate.whole_bytes(),
        Err(error) => {
            value.mistake(format_args!("{error}, or \"off\""));
            return default;
        }
    };
    if bytes < least {
        value.mistake(format_args!("{text:?} is less than {}/s", show_size(least)));
    }
    Some(bytes)
}

fn min_free(section: &mut Section<'_, '_>, key: &'static str, default: MinFree) -> MinFree {
    let Some(value) = section.value(key) else { return default };
    let Some(text) = value.string() else { return default };
    if text == "auto" {
        return MinFree::Auto;
    }
    let percent = text.strip_suffix('%').map(|number| number.trim().parse::<u8>().ok());
    match percent.map(|percent| percent.filter(|&percent| percent < 100)) {
        Some(Some(percent)) => return MinFree::Percent(percent),
        None if let Ok(bytes) = parse_size(text) => return MinFree::Bytes(bytes),
        _ => value.mistake(format_args!(
            "{text:?} has to be a size, as \"2GiB\", a share below 100, as \"5%\", or \"auto\""
        )),
    }
    default
}

fn io_class(
    section: &mut Section<'_, '_>,
    key: &'static str,
    default: Option<IoClass>,
) -> Option<IoClass> {
    let Some(value) = section.value(key) else { return default };
    let text = value.string()?;
    let level = text.strip_prefix("best-effort:").and_then(|level| level.parse::<u8>().ok());
    match (text, level) {
        ("none", _) => return None,
        ("idle", _) => return Some(IoClass::Idle),
        (_, Some(level @ 0..=7)) => return Some(IoClass::BestEffort(level)),
        _ => value.mistake(format_args!(
            "{text:?} has to be \"none\", \"idle\" or \"best-effort:N\" with N from 0 (first) to 7"
        )),
    }
    default
}

fn size(section: &mut Section<'_, '_>, key: &'static str, default: u64, most: (u64, u64)) -> u64 {
    let Some(value) = section.value(key) else { return default };
    let Some(text) = value.string() else { return default };
    match parse_size(text) {
        Err(error) => value.mistake(error),
        Ok(size) if size < most.0 || size > most.1 => {
            let (least, most) = (show_size(most.0), show_size(most.1));
            value.mistake(format_args!("{text:?} is outside {least} to {most}"));
        }
        Ok(size) => return size,
    }
    default
}

fn show_size(bytes: u64) -> String {
    let units = [(TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")];
    let unit = units.into_iter().find(|(scale, _)| bytes >= *scale).unwrap_or((1, "B"));
    format!("{}{}", bytes / unit.0, unit.1)
}

/// A duration between so many and so many seconds.
fn duration(
    section: &mut Section<'_, '_>,
    key: &'static str,
    default: Duration,
    seconds: (u64, u64),
) -> Duration {
    let Some(value) = section.value(key) else { return default };
    let Some(text) = value.string() else { return default };
    let (least, most) = (Duration::from_secs(seconds.0), Duration::from_secs(seconds.1));
    match parse_duration(text) {
        Err(error) => value.mistake(error),
        Ok(duration) if duration < least || duration > most => {
            value.mistake(format_args!("{text:?} is outside {}s to {}s", seconds.0, seconds.1));
        }
        Ok(duration) => return duration,
    }
    default
}

/// A number of things of which there is at least one; `"auto"` is the default, which may depend
/// on the machine.
fn count(section: &mut Section<'_, '_>, key: &'static str, default: usize, most: usize) -> usize {
    match section.value(key) {
        Some(value) if value.is_word("auto") => default,
        Some(_) => number(section, key, default, (1, most)),
        None => default,
    }
}

fn number(
    section: &mut Section<'_, '_>,
    key: &'static str,
    default: usize,
    (least, most): (usize, usize),
) -> usize {
    let Some(value) = section.value(key) else { return default };
    let Some(integer) = value.integer() else { return default };
    match usize::try_from(integer) {
        Ok(number) if (least..=most).contains(&number) => return number,
        _ => value.mistake(format_args!("{integer} is outside {least} to {most}")),
    }
    default
}

fn word<T: Copy>(
    section: &mut Section<'_, '_>,
    key: &'static str,
    default: T,
    words: &[(&str, T)],
) -> T {
    let Some(value) = section.value(key) else { return default };
    let Some(text) = value.string() else { return default };
    let found = words.iter().find(|(word, _)| *word == text);
    if found.is_none() {
        let known = words.iter().map(|(word, _)| format!("{word:?}")).collect::<Vec<_>>();
        value.mistake(format_args!("{text:?} has to be {}", known.join(" or ")));
    }
    found.map_or(default, |(_, meant)| *meant)
}

fn address(
    section: &mut Section<'_, '_>,
    key: &'static str,
    default: Option<std::net::SocketAddr>,
) -> Option<std::net::SocketAddr> {
    let Some(value) = section.value(key) else { return default };
    let Some(text) = value.string() else { return default };
    if text == "off" {
        return None;
    }
    let parsed = text.parse().ok();
    if parsed.is_none() {
        value.mistake(format_args!("{text:?} has to be \"IP:PORT\", or \"off\""));
    }
    parsed.or(default)
}

fn level(section: &mut Section<'_, '_>, key: &'static str, default: String) -> String {
    let Some(value) = section.value(key) else { return default };
    let Some(text) = value.string() else { return default };
    match tracing_subscriber::EnvFilter::builder().parse(text) {
        Ok(_) if !text.trim().is_empty() => return text.to_owned(),
        Ok(_) => value.mistake("is empty; write error, warn, info, debug or trace"),
        Err(error) => value.mistake(format_args!("{text:?} is not a level or filter: {error}")),
    }
    default
}
