//! A machine image for EKS, made by the component for Image Builder, and a node that boots from it without its registry.

use super::eks::{a_pod, as_nodeadm_writes, boots, made_with_a_pause_image, node};
use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_starts_what_image_builder_baked() {
    let test = "a machine image by Image Builder's component";
    let Some(house) = House::open(test) else { return };
    let program = program(&house);
    let Some(steps) = super::super::recipes::steps_of_the_component(test) else { return };
    let Some(root) = node(&house, test) else { return };
    tokio::task::block_in_place(|| {
        let Some(instance) = Instance::boot(&house, root, &program, test) else { return };
        let machine = &instance.machine;
        made_with_a_pause_image(machine);
        let image = Instance::image();
        let values = [
            ("Tarball", "http://127.0.0.1:8080/hoist.tar.gz"),
            ("Sha256", instance.sha256.as_str()),
            ("Images", image.as_str()),
        ];
        for step in &steps {
            let fill = |text: String, (name, value): &(&str, &str)| {
                text.replace(&format!("{{{{ {name} }}}}"), value)
            };
            let (code, said) = instance.runs(&values.iter().fold(step.clone(), fill));
            assert_eq!(code, Some(0), "{step}\n{said}\n{}", machine.journal());
        }

        // The registry is away, and nodeadm writes its configuration over the one that was there.
        instance.ecr.script(|_, _| Reply::new(503, "away"));
        boots(machine, "#!/bin/bash\n");
        let dump = machine.must("containerd config dump");
        assert!(dump.contains("sandbox = 'localhost/kubernetes/pause:latest'"), "{dump}");
        assert!(as_nodeadm_writes().contains("localhost/kubernetes/pause:latest"));
        machine.must("systemctl start hoist-bake-verify");
        a_pod(machine, &image, "baked");
    });
}
