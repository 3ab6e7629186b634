#!/bin/sh
# The ramdisk's only program: finds the disks, and hands over to the guest's own init.
export PATH=/bin
b=/bin/busybox
for module in /modules/*.ko; do
    [ -e "$module" ] && $b insmod "$module"
done
$b mount -t proc proc /proc
$b mount -t devtmpfs devtmpfs /dev
for word in $($b cat /proc/cmdline); do
    case $word in guest_init=*) init=${word#guest_init=} ;; esac
done
# Disks are seen a moment after their driver is there.
until [ -b /dev/vda ] && [ -b /dev/vdb ]; do
    tries=$((tries + 1))
    [ "$tries" -lt 100 ] || { echo "the disks did not appear"; $b poweroff -f; }
    $b sleep 0.1
done
$b mount -t ext4 -o noatime /dev/vda /root && $b mount -t ext4 -o ro /dev/vdb /root/programs || $b poweroff -f
$b umount /dev
$b umount /proc
exec $b switch_root /root "$init"
