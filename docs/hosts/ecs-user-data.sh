#!/bin/bash
# User data for an ECS instance (ECS-optimised AMI for Amazon Linux 2023): hoist before the agent starts its first task.
# Set the three values. docs/hosts/README.md says what of this was run and what was not.
set -euo pipefail

cluster=my-cluster
tarball=https://example.com/hoist-0.1.0-x86_64.tar.gz # yours: an HTTPS address that the instance can reach
sha256=put-the-line-of-SHA256SUMS-here

echo "ECS_CLUSTER=$cluster" >>/etc/ecs/ecs.config

# A host without hoist still runs tasks: whatever fails below leaves Docker as it was.
install_hoist() {
    local work
    work=$(mktemp -d)
    curl --fail --silent --show-error --location --retry 5 --output "$work/hoist.tar.gz" "$tarball" || return 1
    echo "$sha256  $work/hoist.tar.gz" | sha256sum --check --quiet || return 1
    tar --extract --gzip --file "$work/hoist.tar.gz" --directory / --strip-components 1 --no-same-owner || return 1
    rm -rf "$work"
    systemctl daemon-reload || return 1
    systemctl enable --now hoistd || return 1
    # The agent's image was put into Docker's old store when the AMI was made; ecs-init loads it again.
    hoist install docker --yes --hide-images || return 1
    systemctl restart containerd docker || {
        hoist uninstall docker --yes
        systemctl restart containerd docker
        return 1
    }
}
install_hoist || echo "hoist is not installed; Docker goes on without it" >&2
