use super::containerd::{For, plan as plan_containerd, undo as undo_containerd};
use super::docker::{Daemon, Facts, plan, undo};
use super::{InstallError, containerd, json};

fn docker(text: Option<&str>, backup: Option<&str>) -> Facts {
    Facts {
        path: "/etc/docker/daemon.json".into(),
        text: text.map(str::to_owned),
        backup: backup.map(str::to_owned),
        daemon: Some(Daemon {
            version: "28.5.2+dfsg4".to_owned(),
            driver: "overlay2".to_owned(),
            ..Daemon::default()
        }),
    }
}

fn after(facts: &Facts) -> String {
    plan(facts, false).unwrap().after.unwrap()
}

#[test]
fn daemon_json_keeps_its_layout() {
    let new = "{\n    \"features\": { \"containerd-snapshotter\": true },\n    \"storage-driver\": \"hoist\"\n}\n";
    assert_eq!(after(&docker(None, None)), new);
    assert_eq!(after(&docker(Some(""), None)), new);
    let texts = [
        (
            r#"{"debug": true}"#,
            r#"{"debug": true, "features": { "containerd-snapshotter": true }, "storage-driver": "hoist"}"#,
        ),
        (
            "{\n  \"storage-driver\": \"overlay2\",\n  \"z\": [1, {\"}\": \"\\\"]\"}],\n  \"features\": {\"buildkit\": true}\n}",
            "{\n  \"storage-driver\": \"hoist\",\n  \"z\": [1, {\"}\": \"\\\"]\"}],\n  \"features\": {\"buildkit\": true, \"containerd-snapshotter\": true}\n}",
        ),
        (
            "{\n\t\"features\": {\n\t\t\"a\": false\n\t}\n}\n",
            "{\n\t\"features\": {\n\t\t\"a\": false,\n\t\t\"containerd-snapshotter\": true\n\t},\n\t\"storage-driver\": \"hoist\"\n}\n",
        ),
        (
            "{}",
            "{\n    \"features\": { \"containerd-snapshotter\": true },\n    \"storage-driver\": \"hoist\"\n}",
        ),
    ];
    for (before, expected) in texts {
        let first = after(&docker(Some(before), None));
        assert_eq!(first, expected);
        assert_eq!(
            after(&docker(Some(&first), Some(before))),
            first,
            "a second time changes nothing"
        );
        let back = undo(&docker(Some(&first), Some(before))).unwrap();
        assert_eq!(back.after.as_deref(), Some(before), "byte for byte");
    }
    // Made by us, and gone again.
    assert_eq!(undo(&docker(Some(new), None)).unwrap().after, None);
}

#[test]
fn what_others_wrote_since_stays() {
    let before = "{\n  \"storage-driver\": \"overlay2\"\n}\n";
    let installed = after(&docker(Some(before), None));
    let since = json::set(&installed, &["debug"], "true");
    let back = undo(&docker(Some(&since), Some(before))).unwrap().after.unwrap();
    assert_eq!(back, "{\n  \"storage-driver\": \"overlay2\",\n  \"debug\": true\n}\n");
    // Somebody has chosen another driver meanwhile: nothing of it is ours any more.
    let other = json::set(&installed, &["storage-driver"], "\"btrfs\"");
    assert_eq!(undo(&docker(Some(&other), Some(before))).unwrap().after, Some(other));
}

#[test]
fn what_would_break_docker_is_refused() {
    let told = |facts: &Facts| plan(facts, false).unwrap_err().to_string();
    for (text, word) in
        [("{", "daemon.json"), ("[]", "no object"), ("{\"features\": 1}", "features")]
    {
        let facts = docker(Some(text), None);
        assert!(matches!(plan(&facts, false), Err(InstallError::Unreadable { .. })), "{text}");
        assert!(told(&facts).contains(word), "{}", told(&facts));
    }
    assert!(told(&docker(Some("{\"userns-remap\": \"default\"}"), None)).contains("userns-remap"));
    assert!(told(&docker(Some("{\"storage-driver\": \"zfs\"}"), None)).contains("zfs"));
    let with = |change: fn(&mut Daemon)| {
        let mut facts = docker(None, None);
        change(facts.daemon.as_mut().unwrap());
        facts
    };
    let old = with(|daemon| daemon.version = "20.10.24".to_owned());
    assert!(told(&old).contains("20.10.24") && told(&old).contains("25"));
    let images = with(|daemon| daemon.images = 3);
    assert!(told(&images).contains("3 images") && told(&images).contains("--hide-images"));
    assert!(plan(&images, true).is_ok());
    // Images of containerd's own store stay; containers of it would not.
    let store = with(|daemon| (daemon.images, daemon.containerd_store) = (3, true));
    assert!(plan(&store, false).is_ok());
    let store = with(|daemon| (daemon.containers, daemon.containerd_store) = (1, true));
    assert!(told(&store).contains("1 containers"));
    assert!(told(&Facts { daemon: None, ..docker(None, None) }).contains("no Docker"));
}

fn toml(text: Option<&str>, version: (u64, u64)) -> containerd::Facts {
    containerd::Facts {
        path: "/etc/containerd/config.toml".into(),
        text: text.map(str::to_owned),
        backup: None,
        drop_in: None,
        imported: Vec::new(),
        version,
        socket: "/run/hoist/hoist.sock".into(),
        root: "/var/lib/hoist".into(),
        architecture: "amd64".to_owned(),
    }
}

/// After installing: `config.toml` and the file of our own.
fn installed(facts: &containerd::Facts, who: For) -> containerd::Facts {
    let changes = plan_containerd(facts, who).unwrap();
    containerd::Facts {
        text: changes[0].after.clone(),
        drop_in: changes[1].after.clone(),
        backup: facts.text.clone(),
        ..facts.clone()
    }
}

#[test]
fn the_drop_in_says_what_the_documented_one_says() {
    for (version, documented) in [
        ((2, 1), include_str!("../../config/containerd-2.x.toml")),
        ((1, 6), include_str!("../../config/containerd-1.x.toml")),
    ] {
        let with = installed(&toml(None, version), For::All);
        let value = |text: &str| text.parse::<toml::Table>().unwrap();
        assert_eq!(value(&with.drop_in.clone().unwrap()), value(documented));
        assert!(with.text.clone().unwrap().contains("/etc/containerd/conf.d/hoist.toml"));
        let back = undo_containerd(&containerd::Facts { backup: None, ..with }).unwrap();
        assert!(back.iter().all(|change| change.after.is_none()), "{back:?}");
    }
}

const KEPT: &str = r#"# ours
version = 2
imports = ["/etc/containerd/more.toml"] # more

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "pause:3.9" # pinned
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs" # the default
"#;

#[test]
fn what_is_there_stays_and_comes_back() {
    let facts = toml(Some(KEPT), (1, 7));
    let with = installed(&facts, For::All);
    let text = with.text.clone().unwrap();
    for line in [
        "# ours",
        "imports = [\"/etc/containerd/more.toml\", \"/etc/containerd/conf.d/hoist.toml\"] # more",
        "sandbox_image = \"pause:3.9\" # pinned",
        "snapshotter = \"hoist\" # the default",
        "disable_snapshot_annotations = false",
    ] {
        assert!(text.contains(line), "{line} is not in {text}");
    }
    assert!(!with.drop_in.clone().unwrap().contains("plugins.\"io"), "one plugin, one file");
    let again = plan_containerd(&with, For::All).unwrap();
    assert!(again.iter().all(|change| change.before == change.after), "{again:?}");
    assert_eq!(undo_containerd(&with).unwrap()[0].after.as_deref(), Some(KEPT));
    // Edited since: only what is ours goes.
    let since = format!("{text}\n[debug]\nlevel = \"debug\"\n");
    let back = undo_containerd(&containerd::Facts { text: Some(since), ..with }).unwrap();
    let expected = format!("{KEPT}\n[debug]\nlevel = \"debug\"\n");
    assert_eq!(back[0].after.as_deref(), Some(expected.as_str()));
}

/// A machine image was made before nodeadm wrote the configuration.
#[test]
fn a_configuration_that_came_later_keeps_its_tables() {
    let made = installed(&toml(None, (2, 1)), For::All);
    assert!(made.drop_in.as_deref().unwrap().contains("io.containerd.cri.v1.images"));
    let later =
        "version = 3\n[plugins.'io.containerd.cri.v1.images'.pinned_images]\nsandbox = 'p'\n";
    let facts = containerd::Facts { text: Some(later.to_owned()), ..made };
    let after = installed(&facts, For::All);
    let (main, own) = (after.text.clone().unwrap(), after.drop_in.clone().unwrap());
    assert!(main.contains("sandbox = 'p'") && main.contains("snapshotter = \"hoist\""), "{main}");
    assert!(own.contains("[proxy_plugins.hoist]") && !own.contains("cri.v1.images"), "{own}");
    let again = installed(&after, For::All);
    assert_eq!(
        (again.text, again.drop_in),
        (Some(main), Some(own)),
        "a second time changes nothing"
    );
}

#[test]
fn an_unpack_config_gets_one_entry_more() {
    let text = "version = 3\n[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]\nplatform = \"linux/amd64\"\nsnapshotter = \"native\"\n";
    let with = installed(&toml(Some(text), (2, 1)), For::All);
    let after = with.text.clone().unwrap();
    assert!(after.contains("native") && after.contains("hoist") && !after.contains("overlayfs"));
    assert_eq!(undo_containerd(&with).unwrap()[0].after.as_deref(), Some(text));
}

#[test]
fn what_would_break_containerd_is_refused() {
    let told =
        |facts: &containerd::Facts| plan_containerd(facts, For::All).unwrap_err().to_string();
    // As Docker's package of containerd writes it: enough for Docker, not for CRI.
    let first = toml(Some("disabled_plugins = [\"cri\"]\n"), (1, 7));
    assert!(told(&first).contains("config migrate"));
    let docker = plan_containerd(&first, For::Docker).unwrap();
    assert!(!docker[1].after.as_deref().unwrap().contains("version"), "formats do not mix");
    assert!(told(&toml(None, (1, 4))).contains("too old"));
    assert!(told(&toml(Some("version = "), (2, 1))).contains("config.toml"));
    let mut imported = toml(Some("version = 3\nimports = [\"/etc/containerd/z.toml\"]\n"), (2, 1));
    let other = "version = 3\n[plugins.'io.containerd.cri.v1.images']\nsnapshotter = \"x\"\n";
    imported.imported = vec![("/etc/containerd/z.toml".into(), other.to_owned())];
    assert!(told(&imported).contains("z.toml"));
}

#[test]
fn versions_are_read_as_programs_print_them() {
    let texts = [
        ("containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1", (1, 6)),
        ("containerd github.com/containerd/containerd/v2 v2.1.4 0123", (2, 1)),
        ("Docker version 28.5.2+dfsg4, build 3ef3c07", (28, 5)),
    ];
    for (text, expected) in texts {
        assert_eq!(super::host::version(text), Some(expected));
    }
    assert_eq!(super::host::version("none"), None);
}

#[test]
fn a_plan_is_written_whole_or_not_at_all() {
    let home = tempfile::tempdir().unwrap();
    let file = |name: &str| home.path().join(name);
    let read = |name: &str| std::fs::read_to_string(file(name)).ok();
    std::fs::write(file("a"), "old").unwrap();
    let change = |name: &str, before: Option<&str>, after: &str| {
        super::Change::new(&file(name), before, Some(after.to_owned()))
    };
    let changes = vec![change("a", Some("old"), "new"), change("conf.d/b", None, "b")];
    let plan = super::Plan::install(changes);
    let refusing =
        plan.clone().checked_by(vec!["sh".into(), "-c".into(), "echo no >&2; exit 1".into()]);
    let told = refusing.apply().unwrap_err().to_string();
    assert!(told.contains("does not accept") && told.ends_with("no"), "{told}");
    assert_eq!((read("a").as_deref(), read("conf.d/b")), (Some("old"), None));
    assert_eq!(read("a.before-hoist"), None);

    plan.checked_by(vec!["true".into()]).apply().unwrap();
    assert_eq!(
        (read("a").as_deref(), read("a.before-hoist").as_deref()),
        (Some("new"), Some("old"))
    );
    // A second installation that fails keeps the copy of the first.
    let again = super::Plan::install(vec![change("a", Some("new"), "newer")]);
    again.checked_by(vec!["false".into()]).apply().unwrap_err();
    assert_eq!(
        (read("a").as_deref(), read("a.before-hoist").as_deref()),
        (Some("new"), Some("old"))
    );
    super::Plan::uninstall(vec![change("a", Some("new"), "old")]).apply().unwrap();
    assert_eq!((read("a").as_deref(), read("a.before-hoist")), (Some("old"), None));
}

/// A host's `/etc/containerd`, of a containerd 1.7.
struct Etc(tempfile::TempDir);

impl Etc {
    fn read(&self, name: &str) -> Option<String> {
        std::fs::read_to_string(self.0.path().join(name)).ok()
    }

    fn write(&self, text: &str) {
        std::fs::write(self.0.path().join("config.toml"), text).unwrap();
    }

    fn facts(&self) -> containerd::Facts {
        containerd::Facts {
            path: self.0.path().join("config.toml"),
            backup: self.read("config.toml.before-hoist"),
            drop_in: self.read("conf.d/hoist.toml"),
            ..toml(self.read("config.toml").as_deref(), (1, 7))
        }
    }

    fn install(&self, check: &str) -> Result<(), InstallError> {
        let plan = super::Plan::install(plan_containerd(&self.facts(), For::All)?);
        plan.checked_by(vec![check.into()]).apply()
    }

    fn uninstall(&self) {
        super::Plan::uninstall(undo_containerd(&self.facts()).unwrap()).apply().unwrap();
        assert_eq!(self.read("config.toml.before-hoist"), None);
        assert_eq!(self.read("conf.d/hoist.toml"), None);
    }
}

#[test]
fn what_comes_back_is_the_newest_that_had_nothing_of_hoists() {
    let etc = Etc(tempfile::tempdir().unwrap());
    let kept = || etc.read("config.toml.before-hoist");
    etc.write(KEPT);
    etc.install("true").unwrap();
    // Somebody writes another one, as nodeadm does after an update of the machine image.
    let anew = KEPT.replace("pause:3.9", "pause:3.10").replace("\"overlayfs\"", "\"native\"");
    etc.write(&anew);
    etc.install("false").unwrap_err();
    assert_eq!((etc.read("config.toml"), kept().as_deref()), (Some(anew.clone()), Some(KEPT)));
    etc.install("true").unwrap();
    assert_eq!(kept().as_deref(), Some(anew.as_str()));
    // An edit with hoist in it is no such text, even where hoist has to go in again.
    let hoisted = etc.read("config.toml").unwrap();
    let edit = "\n[debug]\nlevel = \"debug\"\n";
    etc.write(&format!("{}{edit}", hoisted.replace("disable_snapshot_annotations = false", "")));
    etc.install("true").unwrap();
    assert_eq!(kept().as_deref(), Some(anew.as_str()));
    etc.uninstall();
    let back = etc.read("config.toml").unwrap();
    assert!(back.contains("pause:3.10") && back.contains("level = \"debug\""), "{back}");
    assert!(back.contains("snapshotter = \"native\"") && !back.contains("hoist"), "{back}");

    // Nobody touches it: byte for byte.
    etc.write(&anew);
    etc.install("true").unwrap();
    etc.uninstall();
    assert_eq!(etc.read("config.toml").as_deref(), Some(anew.as_str()));
}

#[test]
fn what_somebody_has_chosen_instead_of_hoist_stays() {
    let with = installed(&toml(Some(KEPT), (1, 7)), For::All);
    let text = with.text.clone().unwrap().replace("\"hoist\" # the default", "\"native\"");
    let back = undo_containerd(&containerd::Facts { text: Some(text), ..with }).unwrap();
    let after = back[0].after.clone().unwrap();
    assert!(after.contains("snapshotter = \"native\""), "{after}");
    assert!(!after.contains("conf.d/hoist.toml"), "{after}");
}

#[test]
fn a_copy_is_for_those_who_may_read_the_file() {
    use std::os::unix::fs::PermissionsExt;
    let etc = Etc(tempfile::tempdir().unwrap());
    etc.write(KEPT);
    let file = |name: &str| etc.0.path().join(name);
    std::fs::set_permissions(file("config.toml"), PermissionsExt::from_mode(0o600)).unwrap();
    etc.install("true").unwrap();
    let mode = |name: &str| file(name).metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("config.toml"), mode("config.toml.before-hoist")), (0o600, 0o600));
}

/// The same with `daemon.json`.
#[test]
fn a_daemon_json_written_anew_is_what_comes_back() {
    let [first, anew] = [r#"{"debug": true}"#, r#"{"storage-driver": "overlay2", "mtu": 9}"#];
    let change = plan(&docker(Some(first), None), false).unwrap();
    assert!(change.without_hoist);
    let again = plan(&docker(change.after.as_deref(), Some(first)), false).unwrap();
    assert!(!again.without_hoist);
    assert!(plan(&docker(Some(anew), Some(first)), false).unwrap().without_hoist);
}
