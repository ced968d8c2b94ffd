//! An EKS node: nodeadm writes containerd's configuration before the user data and starts containerd and the kubelet after it.

use super::*;

const SCRIPT: &str = "eks-user-data.sh";
const PAUSE: &str = "localhost/kubernetes/pause:latest";
const CONFIG: &str = "/etc/containerd/config.toml";
const DROP_IN: &str = "/etc/systemd/system/containerd.service.d/hoist.conf";
/// The order of nodeadm's units.
const NODEADM_CONFIG: &str = "[Unit]\nBefore=cloud-init.service\n[Service]\nType=oneshot\n\
    ExecStart=/bin/cp /etc/eks/config.toml /etc/containerd/config.toml\n";
const NODEADM_RUN: &str = "[Unit]\nAfter=nodeadm-config.service cloud-final.service\nRequires=nodeadm-config.service\n\
    [Service]\nType=oneshot\nExecStart=/bin/systemctl restart containerd kubelet\n";
const BOOT: &str = "[Unit]\nWants=nodeadm-config.service cloud-final.service nodeadm-run.service\n";
const KUBELET: &str = "[Unit]\nAfter=containerd.service\nWants=containerd.service\n[Service]\nExecStart=/bin/sleep infinity\n";

/// The tables of a configuration of nodeadm's, for containerd 2: a pinned image for sandboxes that no registry has, directories
/// of hosts, runc. Otherwise than there, containers' groups are not systemd's, and they may not ask for more than a machine
/// in a test can give.
pub(super) fn as_nodeadm_writes() -> String {
    format!(
        "version = 3\nroot = '/var/lib/containerd'\nstate = '/run/containerd'\n\n[grpc]\naddress = '/run/containerd/containerd.sock'\n\n\
         [plugins.'io.containerd.cri.v1.images']\ndiscard_unpacked_layers = true\n\n\
         [plugins.'io.containerd.cri.v1.images'.pinned_images]\nsandbox = '{PAUSE}'\n\n\
         [plugins.'io.containerd.cri.v1.images'.registry]\nconfig_path = '/etc/containerd/certs.d:/etc/docker/certs.d'\n\n\
         [plugins.'io.containerd.cri.v1.runtime']\nrestrict_oom_score_adj = true\n\n\
         [plugins.'io.containerd.cri.v1.runtime'.containerd]\ndefault_runtime_name = 'runc'\n\n\
         [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]\nruntime_type = 'io.containerd.runc.v2'\n\n\
         [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]\nSystemdCgroup = false\n"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eks_user_data_puts_hoist_under_the_kubelet() {
    let test = "the user data for EKS";
    let Some(house) = House::open(test) else { return };
    let program = program(&house);
    let Some(root) = node(&house, test) else { return };
    tokio::task::block_in_place(|| {
        let Some(instance) = Instance::boot(&house, root, &program, test) else { return };
        let machine = &instance.machine;
        made_with_a_pause_image(machine);
        a_failure_leaves_nodeadms_configuration(&instance);

        boots(machine, &instance.recipe(SCRIPT, &[]));
        machine
            .must("systemd-analyze verify containerd.service kubelet.service nodeadm-run.service");
        let socket = machine.path("/run/containerd/containerd.sock");
        // The kubelet's own credentials are containerd's; hoist has the instance's.
        let image = Instance::image();
        harness::cri::pull_as(&socket, &image, LOGIN)
            .unwrap_or_else(|error| panic!("{error}\n{}", machine.journal()));
        instance.pulled_as_the_instance();
        a_pod(machine, &image, "first");

        // Another boot: the configuration is nodeadm's again, and hoist in it before containerd runs.
        let with_hoist = configuration(machine);
        boots(machine, &instance.recipe(SCRIPT, &[]));
        assert_eq!(configuration(machine), with_hoist);
        a_pod(machine, &image, "second");
        a_hoistd_that_does_not_start_is_left_out(machine);
        taken_back(machine);
    });
}

/// The root of a node, as its AMI has it.
pub(super) fn node(house: &House, test: &str) -> Option<PathBuf> {
    let root = image(house, test)?;
    for (unit, text) in [
        ("nodeadm-config", NODEADM_CONFIG),
        ("nodeadm-run", NODEADM_RUN),
        ("kubelet", KUBELET),
        ("cloud-final", CLOUD_FINAL),
    ] {
        write(&root, &format!("etc/systemd/system/{unit}.service"), text);
    }
    write(&root, "etc/systemd/system/boot.target", BOOT);
    // No configuration before nodeadm's.
    std::fs::remove_file(root.join(CONFIG.trim_start_matches('/'))).unwrap();
    write(&root, "etc/eks/config.toml", &as_nodeadm_writes());
    Some(root)
}

/// As the AMI is made: the image for sandboxes is there, unpacked for overlayfs alone, and no registry has its name.
pub(super) fn made_with_a_pause_image(machine: &Machine) {
    let (user, password) = LOGIN;
    let image = format!("{REGISTRY}:5000/pause:pause");
    machine.must(&format!(
        "systemctl restart containerd; export CONTAINERD_NAMESPACE=k8s.io\n\
         ctr image pull --user {user}:{password} --hosts-dir /etc/containerd/certs.d {image} >/dev/null\n\
         ctr image tag {image} {PAUSE}; ctr image label {PAUSE} io.cri-containerd.pinned=pinned; ctr image rm --sync {image}\n\
         systemctl stop containerd"
    ));
}

fn configuration(machine: &Machine) -> String {
    machine.must(&format!("cat {CONFIG}"))
}

/// The units of a boot with this user data, in one go as systemd starts them.
pub(super) fn boots(machine: &Machine, script: &str) {
    machine.must("systemctl stop boot.target kubelet containerd hoistd 2>/dev/null || true");
    user_data(machine, script);
    machine.must("systemctl start boot.target");
    let runs = || machine.property("kubelet", "ActiveState") == "active";
    eventually("the kubelet runs", runs, || {
        machine.must("journalctl --no-pager -n 60 | cut -c1-300")
    });
    let plugins = machine.must("ctr plugins ls");
    let hoist = plugins.lines().find(|line| line.contains("hoist")).unwrap_or_default();
    assert!(
        hoist.contains("ok"),
        "{plugins}\n{}",
        machine.must("journalctl -u containerd --no-pager -n 30")
    );
    assert!(machine.must("containerd config dump").contains("snapshotter = 'hoist'"));
}

/// A sandbox on the AMI's pause image, and a container in it.
pub(super) fn a_pod(machine: &Machine, image: &str, name: &str) {
    let socket = machine.path("/run/containerd/containerd.sock");
    let logs = "/var/log/pods";
    machine.must(&format!("mkdir -p {logs}"));
    let pod = harness::pod::Pod::run(&socket, Path::new(logs), name);
    let journal =
        || machine.must("journalctl -u containerd -u hoistd --no-pager -n 60 | cut -c1-400");
    let pod = pod.unwrap_or_else(|error| panic!("no sandbox: {error}\n{}", journal()));
    let code = pod
        .container_ends(image, &["/program", "hello"])
        .unwrap_or_else(|e| panic!("{e}\n{}", journal()));
    assert_eq!(
        (code, machine.must(&format!("cat {logs}/c.log")).contains("stdout F hello")),
        (0, true)
    );
    machine.must(&format!("rm {logs}/c.log"));
    pod.remove().unwrap();
}

fn a_failure_leaves_nodeadms_configuration(instance: &Instance) {
    let machine = &instance.machine;
    let told = |script: &str, says: &str| {
        let (code, said) = instance.runs(script);
        assert_eq!(code, Some(0), "{said}");
        assert!(said.contains("hoist is not installed; containerd goes on without it"), "{said}");
        assert!(said.contains(says), "{said}");
        assert!(!machine.path(DROP_IN).exists());
    };
    told(&instance.recipe(SCRIPT, &[("sha256", &"0".repeat(64))]), "did NOT match");
    told(
        &instance.recipe(SCRIPT, &[("tarball", "http://127.0.0.1:1/hoist.tar.gz")]),
        "127.0.0.1 port 1",
    );
    // A configuration that is there already is kept, and has to be right.
    machine.must("mkdir -p /etc/hoist; echo 'rooot = 1' >/etc/hoist/hoist.toml");
    told(&instance.recipe(SCRIPT, &[]), "rooot");
    machine.must("echo '[log]' >/etc/hoist/hoist.toml");
    machine.must("systemctl start nodeadm-config nodeadm-run");
    assert_eq!(configuration(machine), as_nodeadm_writes());
    assert_eq!(machine.property("kubelet", "ActiveState"), "active");
}

/// The node joins without it.
fn a_hoistd_that_does_not_start_is_left_out(machine: &Machine) {
    machine.must("systemctl stop kubelet containerd hoistd; systemctl mask --runtime hoistd 2>&1");
    machine.must("systemctl start nodeadm-config nodeadm-run");
    assert_eq!(machine.property("containerd", "ActiveState"), "active");
    assert_eq!(configuration(machine), as_nodeadm_writes());
    machine.must("systemctl unmask --runtime hoistd 2>&1; systemctl restart containerd");
    assert_ne!(configuration(machine), as_nodeadm_writes());
}

fn taken_back(machine: &Machine) {
    machine.must(&format!("rm {DROP_IN}; systemctl daemon-reload; hoist uninstall containerd --yes; systemctl restart containerd"));
    assert_eq!(configuration(machine), as_nodeadm_writes());
    let plugins = machine.must("ctr plugins ls");
    assert!(!plugins.contains("hoist"), "{plugins}");
}
