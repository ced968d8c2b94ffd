//! What people read: help texts, and what they are told when something is wrong.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Stdio;

use super::{Reply, hoist, image, run};

/// The commands that `hoist --help` lists.
async fn commands(home: &Path) -> BTreeSet<String> {
    let (_, help, _) = run(home, &["--help"]).await;
    let (_, list) = help.split_once("Commands:\n").unwrap();
    let (list, _) = list.split_once("\n\n").unwrap();
    // A line that a description goes on in is indented further.
    let lines = list.lines().filter(|line| !line.starts_with("   "));
    let names = lines.map(|line| line.split_whitespace().next().unwrap().to_owned());
    names.filter(|name| name != "help").collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_help_text_has_its_exit_codes_and_common_options_apart() {
    let home = tempfile::tempdir().unwrap();
    let commands = commands(home.path()).await;
    assert!(commands.len() > 10, "{commands:?}");
    let mut all: Vec<Vec<&str>> = commands.iter().map(|name| vec![name.as_str()]).collect();
    all.extend(
        ["install", "uninstall"].iter().flat_map(|c| [vec![c, "docker"], vec![c, "containerd"]]),
    );
    all.push(vec!["pulls", "show"]);
    for command in all {
        let (code, help, err) = run(home.path(), &[&command[..], &["--help"]].concat()).await;
        assert_eq!((code, err.as_str()), (0, ""), "{command:?}");
        assert!(help.contains("Exit codes: 0 "), "{command:?}: {help}");
        let (own, common) = help.split_once("\nOptions of every command:\n").unwrap();
        assert!(common.contains("--config <FILE>") && !own.contains("--config <FILE>"), "{help}");
    }
}

/// README.md names each command, and what it and the guides write after `hoist` is one, with such options.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_guides_and_the_help_texts_name_the_same_commands() {
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR"));
    let home = tempfile::tempdir().unwrap();
    let commands = commands(home.path()).await;
    let readme = std::fs::read_to_string(checkout.join("README.md")).unwrap();
    for command in &commands {
        assert!(readme.contains(&format!("`hoist {command}")), "README.md does not name {command}");
    }
    let mut files = vec![checkout.join("README.md"), checkout.join("CHANGELOG.md")];
    for dir in ["docs", "docs/hosts"] {
        let entries = std::fs::read_dir(checkout.join(dir)).unwrap();
        files.extend(
            entries.map(|e| e.unwrap().path()).filter(|p| p.extension().is_some_and(|e| e == "md")),
        );
    }
    let mut seen = 0;
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        for written in text.split('`').skip(1).step_by(2).filter(|span| span.starts_with("hoist "))
        {
            let words: Vec<&str> = written.split_whitespace().skip(1).collect();
            let Some(command) =
                words.first().filter(|w| w.starts_with(|c: char| c.is_ascii_lowercase()))
            else {
                continue;
            };
            assert!(commands.contains(*command), "{}: `{written}`", file.display());
            let nested =
                words.get(1).filter(|word| ["show", "docker", "containerd"].contains(*word));
            let asked = [Some(command), nested, Some(&"--help")].into_iter().flatten().copied();
            let (code, help, err) = run(home.path(), &asked.collect::<Vec<_>>()).await;
            assert_eq!(code, 0, "{}: `{written}`: {err}", file.display());
            for option in words.iter().filter(|word| word.starts_with("--")) {
                let option = option.split('=').next().unwrap();
                assert!(help.contains(option), "{}: `{written}`: {help}", file.display());
            }
            seen += 1;
        }
    }
    assert!(seen > 20, "{seen} are no guides");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mistakes_are_told_with_their_way_out() {
    let (server, image) = image().await;
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("a-file");
    std::fs::write(&file, "").unwrap();
    let file = file.to_str().unwrap();
    let new = home.path().join("new");
    let new = new.to_str().unwrap();
    let https = format!("https://{image}");
    let missing = format!("{}/some/image:v2", server.host);
    let layout = format!("oci:{}", home.path().join("layout").display());
    let convert = |more: &[&'static str]| [&["convert", &image, &layout][..], more].concat();
    let cases: [(&[&str], i32, &[&str]); 15] = [
        // Both ways are named, and neither is taken for the other.
        (&["pull", &image], 2, &["<--to <DIR>|--snapshots>"]),
        (&["pull", &image, "--snapshots", "--connections", "3"], 2, &["cannot be used with"]),
        (&["pull", &image, "--snapshots", "--plain-http", "h"], 2, &["cannot be used with"]),
        (&["pull", &image, "--to", file], 1, &["a-file: it is no directory; name an empty or"]),
        (&["pull", &image, "--to", "/proc/x"], 1, &["cannot pull into /proc/x: "]),
        (&["inspect", &https], 2, &["without https://", "registry.example/repository:tag"]),
        (&["inspect", "127.0.0.1:1/x:y"], 5, &["refused", "hoist doctor --image"]),
        (&["simulate"], 2, &["<IMAGE|--layer-sizes <SIZE,…>|--analysis <FILE>>"]),
        (&convert(&["--layers", "0"]), 2, &["1..=127"]),
        (&convert(&["--layers", "128"]), 2, &["1..=127"]),
        (&convert(&["--level", "23"]), 2, &["zstd has no level 23: its levels are 1 to 22"]),
        (
            &convert(&["--level", "3", "--compression", "none"]),
            2,
            &["--level 3", "not to compress"],
        ),
        (&convert(&["--order", "/nowhere"]), 2, &["cannot read the list of paths /nowhere: "]),
        (&["pull", &missing, "--to", new], 3, &["v2"]),
        (&["completion", "tcsh"], 2, &["bash, elvish, fish, powershell, zsh"]),
    ];
    for (arguments, expected, words) in cases {
        let (code, out, err) = run(home.path(), arguments).await;
        assert_eq!((code, out.as_str()), (expected, ""), "{arguments:?}: {err}");
        for word in words {
            assert!(err.contains(word), "{arguments:?}: {word} is not in {err}");
        }
    }
    assert!(!Path::new(new).exists(), "a directory that was made for a pull goes with it");
    // One is not many.
    let (_, out, err) = run(home.path(), &convert(&["--layers", "1"])).await;
    assert!(out.contains(" 2 layers of"), "{out}{err}");
    let again = format!("{layout}-again");
    let (_, out, err) = run(home.path(), &["convert", &layout, &again]).await;
    assert!(out.contains(" 1 layer of"), "{out}{err}");
}

/// `head -1` has seen enough, and a closed standard error wants to hear nothing: neither is a reason to panic.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_have_gone_are_no_reason_to_panic() {
    let gone = || {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        drop(reader);
        Stdio::from(writer)
    };
    let (server, image) = image().await;
    let home = tempfile::tempdir().unwrap();
    for arguments in [
        &["inspect", &image][..],
        &["completion", "bash"],
        &["simulate", "--layer-sizes", "5MB"],
        &["--help"],
    ] {
        let output = hoist(home.path(), arguments).stdout(gone()).output().await.unwrap();
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!((output.status.code(), err.as_str()), (Some(0), ""), "{arguments:?}");
    }
    server.script(|_, _| Reply::new(404, ""));
    let mut failing = hoist(home.path(), &["inspect", &image]);
    let status = failing.stderr(gone()).stdout(Stdio::null()).status().await.unwrap();
    assert_eq!(status.code(), Some(3), "a panic is 101");
}
