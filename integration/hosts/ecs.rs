//! ECS on EC2: Docker, whose store has the agent's image already, and ecs-init, which starts the agent after the user data.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::*;

const SCRIPT: &str = "ecs-user-data.sh";
const AGENT: &str = "amazon/amazon-ecs-agent:latest";
/// What somebody has set for Docker; a machine in a test has no bridges, and ECR no certificate.
const DAEMON_JSON: &str = "{\n  \"bridge\": \"none\", \"iptables\": false, \"ip6tables\": false, \"ip-forward\": false,\n  \
    \"insecure-registries\": [\"123456789012.dkr.ecr.eu-west-1.amazonaws.com:5000\"]\n}\n";
/// The order of ecs-init's unit. It loads the agent's image from its own archive where Docker does not show it.
const ECS: &str = "[Unit]\nWants=docker.service\nPartOf=docker.service\nAfter=docker.service\nAfter=cloud-final.service\n\
    [Service]\nRestart=on-failure\nRestartSec=1s\nEnvironmentFile=-/etc/ecs/ecs.config\nExecStartPre=/usr/libexec/ecs-init\n\
    ExecStart=/usr/bin/docker run --rm --name ecs-agent --network host amazon/amazon-ecs-agent:latest\n";
const ECS_INIT: &str = "#!/bin/sh\ndocker info --format '{{.Driver}}' >>/run/driver-for-the-agent\ndocker rm --force ecs-agent 2>/dev/null\n\
    docker image inspect amazon/amazon-ecs-agent:latest >/dev/null 2>&1 || docker load --input /var/cache/ecs/ecs-agent.tar\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ecs_user_data_puts_hoist_under_docker_before_the_agent() {
    let test = "the user data for ECS";
    let Some(house) = House::open(test) else { return };
    let program = program(&house);
    let Some(root) = image(&house, test) else { return };
    write(&root, "etc/docker/daemon.json", DAEMON_JSON);
    write(&root, "etc/containerd/config.toml", "# as the package has it\nversion = 2\n");
    write(&root, "etc/systemd/system/cloud-final.service", CLOUD_FINAL);
    write(&root, "etc/systemd/system/ecs.service", ECS);
    write(
        &root,
        "etc/systemd/system/boot.target",
        "[Unit]\nWants=ecs.service cloud-final.service\n",
    );
    script(&root, "usr/libexec/ecs-init", ECS_INIT);
    std::fs::create_dir_all(root.join("var/cache/ecs")).unwrap();
    std::fs::write(root.join("var/cache/ecs/ecs-agent.tar"), saved(&program, AGENT)).unwrap();
    tokio::task::block_in_place(|| {
        let Some(instance) = Instance::boot(&house, root, &program, test) else { return };
        let machine = &instance.machine;
        machine.must(
            "systemctl start docker; docker load --quiet --input /var/cache/ecs/ecs-agent.tar",
        );
        assert_eq!(driver(machine), "overlay2");
        nothing_changes_where_a_step_fails(&instance);

        // As at the first boot: ecs-init waits for the user data, which restarts Docker meanwhile.
        let proxy = format!("{}\nexport HTTPS_PROXY=http://127.0.0.1:3128", instance.sha256);
        let script = instance.recipe(SCRIPT, &[("cluster", "mine"), ("sha256", &proxy)]);
        user_data(machine, &script);
        machine.must("rm -f /run/driver-for-the-agent; systemctl start boot.target");
        let agent = || machine.inside("docker exec ecs-agent /program up").status.success();
        eventually("the agent runs", agent, || machine.must("journalctl --no-pager -n 60"));
        assert_eq!(machine.must("cat /run/driver-for-the-agent"), "hoist\n");
        assert_eq!(driver(machine), "hoist");
        assert_eq!(machine.must("cat /etc/ecs/ecs.config"), "ECS_CLUSTER=mine\n");
        // Of the addresses that are asked here none is behind it.
        let environment = machine.property("hoistd", "Environment");
        assert!(
            environment.contains("HTTPS_PROXY=http://127.0.0.1:3128 NO_PROXY=169.254.169.254"),
            "{environment}"
        );
        pulls_and_runs(&instance);
        again(&instance);

        machine.must(
            "systemctl stop ecs; hoist uninstall docker --yes; systemctl restart docker containerd",
        );
        assert_eq!(driver(machine), "overlay2");
        assert_eq!(machine.must("cat /etc/docker/daemon.json"), DAEMON_JSON);
        assert!(machine.must("docker images").contains("amazon-ecs-agent"), "they come back");
    });
}

fn driver(machine: &Machine) -> String {
    machine.must("docker info --format '{{.Driver}}' 2>/dev/null").trim().to_owned()
}

/// A tarball that is not what was promised, none at all, and a Docker that does not come up with hoist.
fn nothing_changes_where_a_step_fails(instance: &Instance) {
    let machine = &instance.machine;
    let told = |values: &[(&str, &str)], says: &str| {
        let (code, said) = instance.runs(&instance.recipe(SCRIPT, values));
        assert_eq!(code, Some(0), "{said}");
        assert!(said.contains("hoist is not installed; Docker goes on without it"), "{said}");
        assert!(said.contains(says), "{said}");
        assert_eq!(driver(machine), "overlay2");
        assert_eq!(machine.must("cat /etc/docker/daemon.json"), DAEMON_JSON);
        let shown = machine.must("docker images");
        assert!(shown.contains("amazon-ecs-agent"), "{shown}");
        assert!(!machine.path("/etc/containerd/conf.d/hoist.toml").exists());
    };
    let docker = machine.property("docker", "MainPID");
    told(&[("sha256", &"0".repeat(64))], "did NOT match");
    told(&[("tarball", "http://127.0.0.1:1/hoist.tar.gz")], "127.0.0.1 port 1");
    assert!(!machine.path("/usr/bin/hoist").exists(), "what is not the tarball was unpacked");
    assert_eq!(machine.property("docker", "MainPID"), docker, "it was restarted for nothing");

    machine.must(
        "mv /usr/sbin/dockerd /usr/sbin/dockerd.real\n\
         printf '%s\\n' '#!/bin/sh' 'case $* in *--validate*) ;; *) ! grep -q hoist /etc/docker/daemon.json || exit 1 ;; esac' \
         'exec /usr/sbin/dockerd.real \"$@\"' >/usr/sbin/dockerd; chmod +x /usr/sbin/dockerd",
    );
    told(&[], "docker.service");
    assert_ne!(machine.property("docker", "MainPID"), docker, "it was tried");
    assert_eq!(
        machine.inside("systemctl is-enabled hoistd").status.code(),
        Some(1),
        "hoistd is left"
    );
    machine.must("mv /usr/sbin/dockerd.real /usr/sbin/dockerd; rm /etc/ecs/ecs.config");
}

/// As the agent has Docker pull, with a password of its own: hoist does not get it.
fn pulls_and_runs(instance: &Instance) {
    let (machine, image) = (&instance.machine, Instance::image());
    let (user, password) = LOGIN;
    let auth = BASE64_STANDARD.encode(format!("{user}:{password}"));
    let client = serde_json::json!({ "auths": { format!("{REGISTRY}:5000"): { "auth": auth } } });
    write(&machine.root, "root/agent/config.json", &client.to_string());
    machine.must(&format!("docker --config /root/agent pull --quiet {image}"));
    instance.pulled_as_the_instance();
    let said = machine.must(&format!("docker run --rm --network host {image} hello"));
    assert_eq!(said, "hello\n");
}

/// User data that runs once more does nothing.
fn again(instance: &Instance) {
    let machine = &instance.machine;
    let downloads = instance.web.requests().len();
    let docker = machine.property("docker", "MainPID");
    let (code, said) = instance.runs(&instance.recipe(SCRIPT, &[("cluster", "mine")]));
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(machine.property("docker", "MainPID"), docker, "{said}");
    assert_eq!(instance.web.requests().len(), downloads);
    assert_eq!(machine.must("cat /etc/ecs/ecs.config"), "ECS_CLUSTER=mine\n");
}

/// What `docker save` writes of an image with this program.
fn saved(program: &[u8], name: &str) -> Vec<u8> {
    let layer = layer_of(program);
    let config = config_of(&layer);
    let manifest = serde_json::json!([{ "Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"] }]);
    super::super::images::tar([
        ("layer.tar".to_owned(), layer),
        ("config.json".to_owned(), config.into_bytes()),
        ("manifest.json".to_owned(), manifest.to_string().into_bytes()),
    ])
}
