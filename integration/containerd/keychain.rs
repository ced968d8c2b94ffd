//! A kubelet's credentials, passed through hoistd's door to a real containerd: hoistd's own requests use them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::Bench;
use super::harness::containerd::{NAMESPACE, eventually};
use super::harness::scratch::text_below;
use super::harness::{Generation, House, Registry, cri};

/// A house whose registry wants a password, and hoistd in front of containerd's CRI.
fn bench(generation: Generation, test: &str) -> Option<Bench> {
    let house = House::guarded(test)?;
    let home = house.scratch.path();
    let extra = format!(
        "[cri]\nsocket = \"{home}/h/cri.sock\"\ncontainerd = \"{home}/{short}/containerd.sock\"\n[log]\nlevel = \"trace\"",
        home = home.display(),
        short = generation.short(),
    );
    let hoistd = house.hoistd(&extra);
    let containerd = house.containerd(generation, &hoistd, test)?;
    Some(Bench { containerd, hoistd, house })
}

fn what_passes_is_used(generation: Generation) {
    let test = format!("a kubelet's credentials on containerd {generation:?}");
    let Some(bench) = bench(generation, &test) else {
        return;
    };
    let image = bench.house.registry.image("odd:gzip");
    let door = bench.hoistd.home().join("cri.sock");
    // With nobody's credentials nobody pulls, and containerd's own answer comes through.
    let direct = cri::pull(&bench.containerd.socket(), &image).unwrap_err();
    let through = cri::pull(&door, &image).unwrap_err();
    assert!(through.contains("uthoriz"), "{through}");
    assert_eq!(direct, through);

    // Past the door containerd has them and hoistd does not: containerd downloads.
    let user = Registry::USER;
    cri::pull_as(&bench.containerd.socket(), &image, user).unwrap();
    let content = bench.containerd.content(NAMESPACE);
    let layers = bench.containerd.layers(NAMESPACE, &image);
    assert!(layers.iter().all(|layer| content.contains(layer)), "hoistd had credentials");
    bench.remove(&image);
    // A pull that failed is known for some seconds, and not tried again meanwhile.
    // On a slow machine the layers are asked for so late that another one begins for the later of them.
    let ended = || {
        let log = bench.hoistd.log();
        let begun = (1..).take_while(|id| log.contains(&format!("pull{{id={id}}}"))).count();
        begun > 0 && log.matches("pull ended").count() == begun
    };
    eventually("hoistd's own pulls have ended", ended, || bench.hoistd.log());

    // Through the door both have them; what was wrong before is passed over.
    let wrong = cri::pull_as(&door, &image, ("kubelet", "wr0ng-password")).unwrap_err();
    assert!(wrong.contains("uthoriz"), "{wrong}");
    cri::pull_as(&door, &image, user).unwrap();
    bench.assert_not_downloaded(&image);
    // The other calls come through, too.
    cri::remove(&door, &image).unwrap();
    assert!(!bench.containerd.ctr(NAMESPACE, &["image", "ls", "-q"]).contains(&image));

    let mut said = bench.hoistd.log();
    text_below(bench.hoistd.home(), &mut said);
    assert!(said.contains("the kubelet passed credentials"), "it is told that they passed");
    let packed = BASE64_STANDARD.encode(format!("{}:{}", user.0, user.1));
    for secret in [user.1, "wr0ng-password", &packed] {
        assert!(!said.contains(secret), "{secret} is in hoistd's log or root");
    }
}

#[test]
fn what_passes_is_used_on_1() {
    what_passes_is_used(Generation::One);
}

#[test]
fn what_passes_is_used_on_2() {
    what_passes_is_used(Generation::Two);
}
