#!/bin/bash
# User data for an EKS node on Amazon Linux 2023, as the shell part of nodeadm's multi-part document (eks.md has one whole).
# nodeadm writes containerd's configuration before this runs, and starts containerd and the kubelet after it. Set the two values;
# a configuration of yours goes to /etc/hoist/hoist.toml before install_hoist. It may run again.
# docs/hosts/README.md says what of this was run and what was not.
set -euo pipefail

# Yours: an address that the node can reach. Nodes of both architectures want a sum for each.
tarball=https://example.com/hoist-0.1.0-$(uname -m).tar.gz
sha256=put-the-line-of-SHA256SUMS-here
# Behind a proxy: export HTTPS_PROXY and NO_PROXY here (NO_PROXY has to have 169.254.169.254); hoistd gets them too.

# A node without hoist still joins: whatever fails below leaves containerd as it was.
install_hoist() {
    local work keep=()
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
    # A tarball of the other architecture, or a configuration that is wrong, ends here.
    hoistd --check || return 1

    # config.toml is nodeadm's, who writes it anew at each boot, and once more where the NodeConfig changed meanwhile: so hoist goes
    # in whenever containerd starts. hoistd has started before that (its unit says so, and containerd asks for it); where it could
    # not, containerd starts with what nodeadm wrote. To take it back: remove this file, then `hoist uninstall containerd`.
    mkdir -p /etc/systemd/system/containerd.service.d
    cat >/etc/systemd/system/containerd.service.d/hoist.conf <<'UNIT'
[Service]
ExecStartPre=-/bin/sh -c 'systemctl is-active --quiet hoistd && exec /usr/bin/hoist install containerd --yes'
UNIT
    systemctl daemon-reload || return 1
    # Not --now: containerd's start starts it, when the disks that nodeadm sets up are there.
    systemctl enable hoistd
}
install_hoist || echo "hoist is not installed; containerd goes on without it" >&2
