#!/bin/bash
# User data for an EKS node on Amazon Linux 2023, as the shell part of nodeadm's multi-part document: it runs before nodeadm
# writes containerd's configuration and starts the kubelet. docs/hosts/README.md says what of this was run and what was not.
set -euo pipefail

tarball=https://example.com/hoist-0.1.0-x86_64.tar.gz # yours: an HTTPS address that the node can reach
sha256=put-the-line-of-SHA256SUMS-here

work=$(mktemp -d)
curl --fail --silent --show-error --location --retry 5 --output "$work/hoist.tar.gz" "$tarball"
echo "$sha256  $work/hoist.tar.gz" | sha256sum --check --quiet
tar --extract --gzip --file "$work/hoist.tar.gz" --directory / --strip-components 1 --no-same-owner
rm -rf "$work"
systemctl daemon-reload
systemctl enable --now hoistd

# nodeadm writes config.toml anew at each boot; hoist goes in after it and before the kubelet.
cat >/etc/systemd/system/hoist-containerd.service <<'UNIT'
[Unit]
Description=Plugs hoist into the containerd configuration that nodeadm wrote
After=nodeadm-config.service hoistd.service
Before=containerd.service kubelet.service

[Service]
Type=oneshot
ExecStart=/usr/bin/hoist install containerd --yes

[Install]
WantedBy=multi-user.target
UNIT
systemctl daemon-reload
systemctl enable hoist-containerd.service
