//! The documents and scripts of docs/hosts as their readers take them: parsed, and their shell parts by shellcheck.

use std::path::Path;

use super::*;
use harness::skipped;

/// Prints the scripts that are in the documents, as JSON: those of the component in their order, and all of the others.
const READ: &str = r##"
import email, glob, json, re, sys
import yaml
hosts = sys.argv[1]
text = lambda name: open(f"{hosts}/{name}").read()
placeholder = "#!/bin/bash\n# eks-user-data.sh\n"

def parts(document, needs_node_config):
    assert document.count(placeholder) == 1, document
    message = email.message_from_string(document.replace(placeholder, text("eks-user-data.sh")))
    assert message.is_multipart(), document
    assert not message.defects, message.defects
    kinds = {}
    for part in message.get_payload():
        assert not part.defects, part.defects
        kinds[part.get_content_type()] = part.get_payload()
    assert kinds["text/x-shellscript"].strip() == text("eks-user-data.sh").strip()
    if needs_node_config:
        config = yaml.safe_load(kinds["application/node.eks.aws"])
        assert config["kind"] == "NodeConfig" and config["apiVersion"] == "node.eks.aws/v1alpha1", config

blocks = []
for file in glob.glob(f"{hosts}/*.md"):
    blocks += re.findall(r"```(\w+)\n(.*?)```", open(file).read(), re.S)
mime = [block for kind, block in blocks if kind == "mime"]
assert len(mime) == 1
parts(mime[0], True)
classes = 0
for kind, block in blocks:
    document = yaml.safe_load(block) if kind == "yaml" else {}
    if document.get("kind") == "EC2NodeClass":
        parts(document["spec"]["userData"], False)
        classes += 1
assert classes == 1

component = yaml.safe_load(text("image-builder.yml"))
assert component["schemaVersion"] == 1.0
assert [phase["name"] for phase in component["phases"]] == ["build", "validate"]
steps = [step for phase in component["phases"] for step in phase["steps"]]
assert all(step["action"] == "ExecuteBash" for step in steps)
commands = [command for step in steps for command in step["inputs"]["commands"]]
used = set(re.findall(r"{{ (\w+) }}", "".join(commands)))
assert used == {name for parameter in component["parameters"] for name in parameter}, used

hcl = [block for kind, block in blocks if kind == "hcl"]
inline = [re.findall(r'^    "(.*)",$', lines, re.M) for lines in re.findall(r"inline = \[\n(.*?)\]", "".join(hcl), re.S)]
assert inline and all(inline)
shell = [block for kind, block in blocks if kind == "sh"]
print(json.dumps({"component": commands, "others": ["\n".join(lines) for lines in inline] + shell}))
"##;

fn scripts(test: &str) -> Option<serde_json::Value> {
    // Debian's, which has its yaml; another one on the PATH may have none.
    let python = "/usr/bin/python3";
    if !Command::new(python)
        .args(["-c", "import yaml"])
        .output()
        .is_ok_and(|found| found.status.success())
    {
        skipped(test, "no python3-yaml of Debian's");
        return None;
    }
    let hosts = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/hosts");
    let read = must(Command::new(python).args(["-c", READ]).arg(hosts));
    Some(serde_json::from_str(&read).unwrap())
}

fn texts(scripts: &serde_json::Value) -> Vec<String> {
    scripts.as_array().unwrap().iter().map(|script| script.as_str().unwrap().to_owned()).collect()
}

/// The commands of Image Builder's component, in their order, their parameters unfilled; `None`, said loudly, where they cannot be read.
pub(super) fn steps_of_the_component(test: &str) -> Option<Vec<String>> {
    Some(texts(&scripts(test)?["component"]))
}

/// The scripts of the packages too; what is only advice (`info`) does not count.
#[test]
fn recipes_pass_shellcheck() {
    let test = "shellcheck of the recipes";
    let Some(house) = House::open(test) else { return };
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = ["docs/hosts", "integration/packages"].map(|part| checkout.join(part));
    let files = files.iter().flat_map(|part| std::fs::read_dir(part).unwrap().flatten());
    let files: Vec<_> = files.map(|file| file.path()).collect();
    let found: Vec<_> =
        files.iter().filter(|file| file.extension().is_none_or(|end| end == "sh")).collect();
    assert!(found.len() >= 7, "{found:?}");
    let shellcheck = || {
        let mut command = Command::new("shellcheck");
        command.arg("--severity=warning");
        command
    };
    must(shellcheck().args(found));

    let Some(scripts) = scripts(test) else { return };
    let within = [texts(&scripts["component"]), texts(&scripts["others"])].concat();
    for (number, script) in within.iter().enumerate() {
        let file = house.scratch.path().join(format!("{number}.sh"));
        // Parameters as if they were filled.
        std::fs::write(&file, script.replace("{{ ", "").replace(" }}", "")).unwrap();
        must(shellcheck().arg("--shell=bash").arg(file));
    }
}
