#!/bin/sh
# What containerd's devmapper snapshotter asks of dmsetup, for kernels without device-mapper: a thin volume is a sparse file, a
# snapshot is a copy of one, and an active volume is a loop device, whose node in /dev/mapper has the volume's name. The snapshotter
# is containerd's own, as are its calls of mkfs and its mounts.
set -eu
dir=$(dirname "$0")/volumes
verb=$1
shift

# What comes last is mostly a name, or a path of it.
name=
for word; do
    name=${word##*/}
done

missing() {
    echo "Device $1 not found"
    exit 1
}

# One volume's device, number and size in sectors.
active() {
    [ -f "$dir/active.$1" ] || missing "$1"
    read -r device id sectors <"$dir/active.$1"
}

case $verb in
version)
    echo "Library version:   1.02.185 (loop devices)"
    echo "Driver version:    4.47.0"
    ;;
info)
    if [ "$name" = pool ]; then
        echo "pool dm-0 L--w 0 0 0 1 0"
    else
        active "$name"
        echo "$name $(basename "$device") L--w $(stat -c '%Hr %Lr' "$device") 0 1 0"
    fi
    ;;
message)
    # POOL 0 "create_thin ID", "create_snap ID ORIGIN", "delete ID"
    set -- $3
    case $1 in
    create_thin) : >"$dir/$2.img" ;;
    create_snap)
        [ -f "$dir/$3.img" ] || missing "$3"
        for file in "$dir"/active.*; do
            [ -f "$file" ] || continue
            read -r device id _ <"$file"
            [ "$id" != "$3" ] || blockdev --flushbufs "$device"
        done
        cp --sparse=always "$dir/$3.img" "$dir/$2.img"
        ;;
    delete) rm -f "$dir/$2.img" ;;
    esac
    ;;
create)
    # NAME --table "0 SECTORS thin POOL ID"
    name=$1
    set -- $3
    truncate -s "$(($2 * 512))" "$dir/$5.img"
    device=$(losetup --find --show "$dir/$5.img")
    mknod "/dev/mapper/$name" b $(stat -c '0x%t 0x%T' "$device")
    echo "$device $5 $2" >"$dir/active.$name"
    ;;
remove)
    active "$name"
    losetup --detach "$device"
    rm -f "$dir/active.$name" "/dev/mapper/$name"
    ;;
status)
    active "$name"
    echo "0 $sectors thin $(stat -c %b "$dir/$id.img") $((sectors - 1))"
    ;;
table)
    active "$name"
    echo "0 $sectors thin 0:0 $id"
    ;;
suspend | resume)
    active "$name"
    sync --file-system "$dir/$id.img"
    blockdev --flushbufs "$device"
    ;;
*)
    echo "dmsetup: $verb is not known here"
    exit 1
    ;;
esac
