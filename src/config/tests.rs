use super::*;
use crate::{compression, pull};

fn environment() -> Environment {
    Environment { cores: 2, ..Environment::default() }
}

fn defaults() -> Config {
    Config::defaults(2, &environment())
}

fn mistakes(text: &str) -> Vec<String> {
    let mistakes = Config::parse(text, defaults()).expect_err("it has mistakes");
    mistakes.iter().map(ToString::to_string).collect()
}

const DOCUMENTED: &str = include_str!("../../config/hoist.toml");

#[test]
fn the_documented_file_is_the_defaults() {
    assert_eq!(Config::parse(DOCUMENTED, defaults()), Ok(defaults()));
}

/// Each documented line is read: with a value of another kind it is a mistake at that line. A key
/// that the file does not name would be listed as known by an unknown neighbour.
#[test]
fn the_documented_file_names_every_key() {
    let keys = |text: &str| {
        let mut keys: Vec<String> = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.split_once(" = "))
            .map(|(key, _)| key.to_owned())
            .collect();
        keys.sort();
        keys.dedup();
        keys
    };
    let sections =
        ["", "limits", "fetch", "registry", "cri", "pull", "metrics", "log", "history", "cleanup"];
    // What holds sections by names of the operator's.
    let named = ["registries"];
    let mut known = Vec::new();
    for section in sections {
        let head = if section.is_empty() { String::new() } else { format!("[{section}]\n") };
        let told = mistakes(&format!("{head}zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz = 1")).remove(0);
        let (_, list) = told.split_once("known here: ").expect("it lists the keys");
        known.extend(
            list.split(", ")
                .filter(|key| !sections.contains(key) && !named.contains(key))
                .map(str::to_owned),
        );
    }
    known.sort();
    known.dedup();
    assert_eq!(keys(DOCUMENTED), known);
}

#[test]
fn all_mistakes_are_told_at_once_with_key_and_line() {
    let text = r#"root = "relative"
socket = 7
contrl_socket = "/x"

[limits]
memory_budget = 256
layers_at_once = 0
writers_per_layer = "many"

[fetch]
chunk_size = "8MB"
retries = -1
stall_timeout = "500ms"
backoff_initial = "1 fortnight"

[registry]
plain_http_hosts = ["http://a", 3]
ca_files = "/x"

[pull]
on_error = "panic"

[metrics]
address = "localhost"

[log]
level = "hoist=loud"

[limit]
x = 1
"#;
    let expected = [
        r#"line 1: root: "relative" has to be an absolute path"#,
        "line 2: socket: is a whole number, has to be a string in quotes",
        r#"line 3: contrl_socket: is not a key; did you mean "control_socket"?"#,
        "line 6: limits.memory_budget: is a whole number, has to be a string in quotes",
        "line 7: limits.layers_at_once: 0 is outside 1 to 64",
        "line 8: limits.writers_per_layer: is a string, has to be a whole number",
        r#"line 11: fetch.chunk_size: "8MB" is not a size; write a whole number and a unit, as "256MiB" (B, KiB, MiB, GiB, TiB)"#,
        "line 12: fetch.retries: -1 is outside 0 to 100",
        r#"line 13: fetch.stall_timeout: "500ms" is outside 1s to 3600s"#,
        r#"line 14: fetch.backoff_initial: "1 fortnight" is not a duration; write a whole number and a unit, as "30s" (ms, s, m, h)"#,
        "line 17: registry.plain_http_hosts[1]: is a whole number, has to be a string in quotes",
        "line 18: registry.ca_files: is a string, has to be a list of strings",
        r#"line 21: pull.on_error: "panic" has to be "fallback" or "fail""#,
        r#"line 24: metrics.address: "localhost" has to be "IP:PORT", or "off""#,
        r#"line 29: limit: is not a key; did you mean "limits"?"#,
    ];
    let told = mistakes(text);
    for line in expected {
        assert!(told.iter().any(|mistake| mistake == line), "{line}\nnot in {told:#?}");
    }
    assert!(told.iter().any(|m| m.starts_with("line 27: log.level:")), "{told:#?}");
    assert_eq!(told.len(), expected.len() + 1, "{told:#?}");
}

#[test]
fn broken_toml_and_the_rest_are_told_together() {
    let told = mistakes("root = \n[log]\nformat = \"xml\"\n");
    assert!(told[0].starts_with("line 1: toml:"), "{told:?}");
    assert_eq!(told[1], r#"line 3: log.format: "xml" has to be "text" or "json""#);
}

#[test]
fn keys_that_do_not_go_together() {
    let told = mistakes("[fetch]\nchunk_size = \"64MiB\"\n[limits]\nmemory_budget = \"100MiB\"\n");
    assert_eq!(
        told,
        [
            "line 2: fetch.chunk_size: limits.memory_budget has to hold two chunks of fetch.chunk_size"
        ]
    );
    let told = mistakes("socket = \"/a\"\ncontrol_socket = \"/a\"\n");
    assert_eq!(told, ["line 2: control_socket: socket and control_socket are the same"]);
    let told = mistakes("socket = \"/a\"\n[cri]\nsocket = \"/a\"\n");
    assert_eq!(told, ["line 3: cri.socket: cri.socket is a socket that has another use"]);
    let told = mistakes("[cri]\nsocket = \"a\"\n");
    assert_eq!(told, ["line 2: cri.socket: \"a\" has to be an absolute path"]);
    let told = mistakes("[fetch]\nbackoff_initial = \"50s\"\n");
    assert_eq!(told.len(), 1, "{told:?}");
}

#[test]
fn what_is_set_is_read() {
    let text = "[limits]\nlayers_at_once = 7\nmax_unpacked = \"1GiB\"\nspeculative_gzip = \"on\"\n[metrics]\naddress = \"off\"\n\
                [pull]\non_error = \"fail\"\ndeadline = \"2m\"\n[log]\nlevel = \"info,hoist=debug\"\n";
    let config = Config::parse(text, defaults()).expect("it is right");
    assert_eq!(config.limits.layers_at_once, 7);
    assert_eq!(config.limits.max_unpacked_bytes, 1 << 30);
    assert_eq!(config.limits.speculative_gzip, Speculation::On);
    assert_eq!(config.decompression(&config.budget()).speculation, Speculation::On);
    assert_eq!(config.metrics.address, None);
    assert_eq!(config.pull.on_error, OnError::Fail);
    assert_eq!(config.pull.deadline, Duration::from_secs(120));
    assert_eq!(config.log.level, "info,hoist=debug");
}

#[test]
fn limits_on_bytes_a_second() {
    let text = "[limits]\ndisk_rate = \"200MB/s\"\nwriters_nice = 5\nwriters_ioprio = \"best-effort:7\"\n\
                [fetch]\nbandwidth = \"1.5MiB/s\"\n\
                [fetch.registries.\"registry.example:5000\"]\nbandwidth = \"25MB/s\"\nconnections = 4\n\
                [fetch.registries.\"docker.io\"]\nconnections = 2\n";
    let config = Config::parse(text, defaults()).expect("it is right");
    assert_eq!(config.limits.disk_bytes_per_second, Some(200_000_000));
    assert_eq!(config.limits.writers, Priority { nice: 5, io: Some(IoClass::BestEffort(7)) });
    assert_eq!(config.fetch.bytes_per_second, Some(1_572_864));
    let restraints = config.restraints();
    let of = |name: &str| restraints.registries[name];
    let both = OfRegistry { bytes_per_second: Some(25_000_000), connections: Some(4) };
    assert_eq!(of("registry.example:5000"), both);
    assert_eq!(of("docker.io"), OfRegistry { bytes_per_second: None, connections: Some(2) });
    assert_eq!(config.unpack_options().rate.bytes_per_second(), Some(200_000_000));
    let off = "[fetch]\nbandwidth = \"off\"\n[limits]\nwriters_ioprio = \"idle\"\n";
    let config = Config::parse(off, config).expect("it is right");
    assert_eq!(config.fetch.bytes_per_second, None);
    assert_eq!(config.limits.writers.io, Some(IoClass::Idle));
}

#[test]
fn wrong_limits_on_bytes_a_second_are_told_with_the_way_out() {
    let text = "[limits]\ndisk_rate = \"100KiB/s\"\nwriters_ioprio = \"best-effort:8\"\nwriters_nice = -5\n\
                [fetch]\nbandwidth = \"25MB\"\nregistries.docker = 3\n\
                [fetch.registries.\"https://host\"]\nbandwith = \"1MB/s\"\nconnections = 0\n";
    let told = mistakes(text);
    let expected = [
        r#"line 2: limits.disk_rate: "100KiB/s" is less than 1MiB/s"#,
        r#"line 3: limits.writers_ioprio: "best-effort:8" has to be "none", "idle" or "best-effort:N" with N from 0 (first) to 7"#,
        "line 4: limits.writers_nice: -5 is outside 0 to 19",
        r#"line 6: fetch.bandwidth: "25MB" is not a rate above zero; write a number and a unit, as "225MB/s" (B/s, kB/s, MB/s, GB/s, KiB/s, MiB/s, GiB/s), or "off""#,
        r#"line 7: fetch.registries."docker": is a whole number, has to be a section: [fetch.registries."docker"]"#,
        r#"line 9: fetch.registries."https://host".bandwith: is not a key; did you mean "bandwidth"?"#,
        r#"line 10: fetch.registries."https://host".connections: 0 is outside 1 to 1024"#,
    ];
    for line in expected {
        assert!(told.iter().any(|mistake| mistake == line), "{line}\nnot in {told:#?}");
    }
    let scheme = r#""https://host" has to be HOST or HOST:PORT, without a scheme"#;
    assert!(told.iter().any(|mistake| mistake.contains(scheme)), "{told:#?}");
    assert_eq!(told.len(), expected.len() + 1, "{told:#?}");
}

#[test]
fn what_has_to_stay_free() {
    let read = |value: &str| Config::parse(&format!("[limits]\nmin_free = {value}\n"), defaults());
    for (text, means) in [
        ("\"auto\"", MinFree::Auto),
        ("\"2GiB\"", MinFree::Bytes(2 << 30)),
        ("\"0B\"", MinFree::Bytes(0)),
        ("\"15 %\"", MinFree::Percent(15)),
    ] {
        assert_eq!(read(text).expect("it is right").limits.min_free, means);
    }
    for wrong in ["\"100%\"", "\"-1%\"", "\"2GB\"", "\"much\""] {
        let told = read(wrong).expect_err("it is wrong")[0].to_string();
        assert!(told.starts_with("line 2: limits.min_free: ") && told.contains("\"5%\""), "{told}");
    }
    assert!(read("\"8MiB\"").is_ok());
    let told = read("\"8191KiB\"").expect_err("it cannot be kept")[0].to_string();
    assert!(told.contains("less than 8MiB") && told.contains("0B"), "{told}");
}

/// Whatever the sizes: beside layers in work, what their frames borrow, and the heads of those that wait, one
/// chunk always fits, without which no fetch goes on; beside one with the largest window too.
#[test]
fn what_is_reserved_leaves_a_chunk() {
    for (memory, chunk) in [("256MiB", 8), ("100MiB", 4), ("100MiB", 16), ("1GiB", 1), ("2GiB", 64)]
    {
        let text = format!(
            "[fetch]\nchunk_size = \"{chunk}MiB\"\n[limits]\nmemory_budget = \"{memory}\"\n"
        );
        let config = Config::parse(&text, defaults()).expect("it is right");
        let (budget, chunk) = (config.budget(), config.fetch.chunk_bytes);
        let decompression = config.decompression(&budget);
        let (total, heads) = (budget.total(), budget.heads());
        let lent = decompression.pool.expect("there are helpers").lent_bytes();
        assert!(total / 2 + lent + heads + chunk <= total, "{text}");
        let alone = pull::layer_bytes(u64::MAX) + decompression.window_bytes;
        assert!(alone + heads + chunk <= total || decompression.window_bytes == 0, "{text}");
        if memory == "256MiB" {
            assert_eq!(decompression.window_bytes, compression::WINDOW_BYTES_MAX);
        }
    }
}

#[test]
fn units() {
    assert_eq!(parse_size("1TiB"), Ok(1 << 40));
    assert_eq!(parse_size("17 B"), Ok(17));
    assert!(parse_size("1.5GiB").is_err());
    assert!(parse_size("MiB").is_err());
    assert!(matches!(parse_size("99999999999999TiB"), Err(UnitError::Overflow { .. })));
    assert_eq!(parse_duration("90m"), Ok(Duration::from_secs(5400)));
    assert!(parse_duration("90").is_err());
}

#[test]
fn a_named_file_has_to_be_there_and_a_default_one_not() {
    let missing = Config::load(Some(Path::new("/nonexistent/hoist.toml")), &environment());
    assert!(matches!(missing, Err(ConfigError::Read { .. })), "{missing:?}");
    let named = Environment { config: Some("/nonexistent/h.toml".into()), ..environment() };
    assert!(Config::load(None, &named).is_err());
}

#[test]
fn dockers_directory_comes_from_the_environment() {
    assert_eq!(environment().docker_config(), Path::new("/root/.docker/config.json"));
    let set = Environment { docker_config_dir: Some("/d".into()), ..environment() };
    assert_eq!(Config::defaults(2, &set).registry.docker_config, Path::new("/d/config.json"));
}
