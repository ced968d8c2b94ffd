//! Two containerds on one hoistd: the second one is refused, and takes nothing from the first.

use super::*;

#[test]
fn a_second_containerd_is_refused_until_the_first_has_ended() {
    let test = "two containerds on one hoistd";
    let Some(mut bench) = bench(Generation::Two, test) else { return };
    let Some(second) = bench.house.containerd(Generation::One, &bench.hoistd, test) else { return };
    let image = bench.house.registry.image("odd:gzip");
    bench.containerd.pull(&image);
    bench.containerd.begin(&image, "user");
    let stored = bench.hoistd.stored();

    // What it does by itself and what it is asked for: a pull, and garbage collections.
    let refused = second.begin_pull(&image).join().expect("the pulling thread does not panic");
    let refused = refused.expect_err("another containerd is there");
    assert!(refused.contains("this hoistd serves the process"), "{refused}");
    let log = bench.hoistd.log();
    for word in ["a second containerd is refused", "coexistence.md", "/containerd)"] {
        assert!(log.contains(word), "{word} is not in {log}");
    }
    let snapshot = ["snapshot", "--snapshotter", "hoist"];
    assert!(!second.answers(&[&snapshot[..], &["prepare", "its-own"]].concat()));
    second.collect_garbage();
    assert_eq!(bench.hoistd.stored(), stored, "{}", bench.hoistd.log());
    let release = bench.containerd.within("user", "look", &["cat", "/etc/debian_version"]);
    assert!(release.starts_with("12."), "{release:?}");
    bench.containerd.end("user");
    bench.remove(&image);

    // The first one goes: hoistd is the other's, without a restart.
    bench.containerd.crash();
    second.pull(&image);
    assert!(bench.hoistd.trees() > 0, "{}", bench.hoistd.log());
}
