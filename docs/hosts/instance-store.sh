#!/bin/bash
# instance-store.sh [BY-ID [ROOT]]: hoistd's root on the instance's own NVMe disks, as RAID0 where there are several. To be run at each boot
# before hoistd starts, as hoist-instance-store.service of the packages does; where the instance has no disks, nothing is done. Docker's and
# containerd's directories stay where they are. Needs mdadm for more than one disk. docs/hosts/storage.md says what of this was run and what was not.
set -euo pipefail

by_id=${1:-/dev/disk/by-id}
root=${2:-/var/lib/hoist}
label=hoist-root
stays() { echo "instance-store: $*; $root stays on the root volume" >&2; exit 0; }

! mountpoint --quiet "$root" || exit 0
# At a boot udev may still be at it. It gives each disk several names; what they lead to is counted once.
udevadm settle --timeout=30 2>/dev/null || true
mapfile -t disks < <(find "$by_id" -name 'nvme-Amazon_EC2_NVMe_Instance_Storage_*' ! -name '*-part*' -exec readlink -f {} + | sort -u)
[ ${#disks[@]} != 0 ] || stays "this instance has no disks of its own"
# After a reboot everything is there, an array under any name: the label says which it is. After a stop the disks are empty.
[ ${#disks[@]} = 1 ] || mdadm --assemble --scan || true
volume=$(blkid --label "$label") || {
    for disk in "${disks[@]}"; do
        [ "$(blkid --probe "$disk" >/dev/null; echo $?)" = 2 ] || stays "$disk has something on it that is not hoist's"
    done
    volume=${disks[0]}
    if [ ${#disks[@]} != 1 ]; then
        volume=/dev/md/hoist
        mdadm --create "$volume" --level=0 --raid-devices="${#disks[@]}" --run "${disks[@]}"
    fi
    mkfs.ext4 -q -L "$label" -m 0 -E lazy_itable_init=0,lazy_journal_init=0,nodiscard "$volume"
}
mkdir -p "$root"
mount -o noatime "$volume" "$root"
# As hoistd's unit makes it: others than root may go through, for containers with user namespaces.
chmod 0711 "$root"
