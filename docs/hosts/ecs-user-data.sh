#!/bin/bash
# User data for an ECS instance (ECS-optimised AMI for Amazon Linux 2023): hoist before the agent starts its first task.
# Set the three values; a configuration of yours goes to /etc/hoist/hoist.toml before install_hoist. It may run again, at each
# boot too: a host that has hoist is left as it is. docs/hosts/README.md says what of this was run and what was not.
set -euo pipefail

cluster=my-cluster
# Yours: an address that the instance can reach. Instances of both architectures want a sum for each.
tarball=https://example.com/hoist-0.1.0-$(uname -m).tar.gz
sha256=put-the-line-of-SHA256SUMS-here
# Behind a proxy: export HTTPS_PROXY and NO_PROXY here (NO_PROXY has to have 169.254.169.254); hoistd gets them too.

mkdir -p /etc/ecs
touch /etc/ecs/ecs.config
grep -qx "ECS_CLUSTER=$cluster" /etc/ecs/ecs.config || echo "ECS_CLUSTER=$cluster" >>/etc/ecs/ecs.config

# A host without hoist still runs tasks: whatever fails below leaves Docker as it was.
install_hoist() {
    local work keep=()
    [ "$(docker info --format '{{.Driver}}')" != hoist ] || return 0
    work=$(mktemp -d)
    curl --fail --silent --show-error --location --retry 5 --output "$work/hoist.tar.gz" "$tarball" || return 1
    echo "$sha256  $work/hoist.tar.gz" | sha256sum --check --quiet || return 1
    [ ! -e /etc/hoist/hoist.toml ] || keep=(--exclude='*/etc/hoist/hoist.toml')
    tar --extract --gzip --file "$work/hoist.tar.gz" --directory / --strip-components 1 --no-same-owner "${keep[@]}" || return 1
    rm -rf "$work"
    if [ -n "${HTTPS_PROXY:-}" ]; then
        mkdir -p /etc/systemd/system/hoistd.service.d
        printf '[Service]\nEnvironment="HTTPS_PROXY=%s" "NO_PROXY=%s"\n' "$HTTPS_PROXY" "${NO_PROXY:-169.254.169.254}" \
            >/etc/systemd/system/hoistd.service.d/proxy.conf
    fi
    systemctl daemon-reload || return 1
    # Layers on the instance's own disks (storage.md): systemctl enable hoist-instance-store
    # A tarball of the other architecture, or a configuration that is wrong, ends here.
    systemctl enable --now hoistd || { systemctl disable --now hoistd; return 1; }
    # The agent's image may be in Docker's old store since the AMI was made; ecs-init loads it again.
    hoist install docker --yes --hide-images && restart && [ "$(docker info --format '{{.Driver}}')" = hoist ] && return 0
    hoist uninstall docker --yes
    systemctl disable --now hoistd
    restart
    return 1
}

# systemd starts a unit that has failed some times in a minute no more, unless it is told to forget that. Docker first: it has to
# end before containerd does, or both wait for minutes for containers that run.
restart() {
    systemctl reset-failed docker containerd
    systemctl restart docker containerd
}
install_hoist || echo "hoist is not installed; Docker goes on without it" >&2
