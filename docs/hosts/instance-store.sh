#!/bin/bash
# instance-store.sh [BY-ID [ROOT]]: hoistd's root on the instance's own NVMe disks, as RAID0 where there are several. For user data, before
# hoistd starts; where the instance has none, nothing is done. Docker's and containerd's directories stay where they are. Needs
# mdadm for more than one disk. docs/hosts/storage.md says what of this was run and what was not.
set -euo pipefail

by_id=${1:-/dev/disk/by-id}
root=${2:-/var/lib/hoist}

mountpoint --quiet "$root" && exit 0
# udev gives each disk several names; what they lead to is counted once.
mapfile -t disks < <(find "$by_id" -name 'nvme-Amazon_EC2_NVMe_Instance_Storage_*' ! -name '*-part*' -exec readlink -f {} + | sort -u)
case ${#disks[@]} in
    0)
        echo "instance-store: this instance has no disks of its own; $root stays on the root volume" >&2
        exit 0
        ;;
    1) volume=${disks[0]} ;;
    *)
        volume=/dev/md/hoist
        mdadm --create "$volume" --level=0 --raid-devices="${#disks[@]}" --run "${disks[@]}"
        ;;
esac
# The disks are empty after a stop, and as they were after a reboot: what is on them is kept.
if ! blkid --probe "$volume" >/dev/null; then
    mkfs.ext4 -q -m 0 -E lazy_itable_init=0,lazy_journal_init=0,nodiscard "$volume"
fi
mkdir -p "$root"
mount -o noatime "$volume" "$root"
