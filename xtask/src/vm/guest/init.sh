#!/bin/sh
# PID 1 of the bare guest: what a distribution's init mounts, cgroup v2 only, and then the command.
export PATH=/programs/bin:/bin:/sbin:/usr/bin:/usr/sbin HOME=/root TERM=dumb
mount -t proc -o nosuid,nodev,noexec proc /proc
mount -t sysfs -o nosuid,nodev,noexec sysfs /sys
if [ -e /programs/selinux ]; then
    mount -t selinuxfs selinuxfs /sys/fs/selinux
    cp -a /programs/selinux/etc/. /etc/
    # The kernel takes a policy in one piece.
    dd if=/programs/selinux/policy of=/sys/fs/selinux/load bs=64M count=1 iflag=fullblock 2>/dev/null
    echo 1 >/sys/fs/selinux/enforce
fi
mount -t devtmpfs -o nosuid devtmpfs /dev
mkdir -p /dev/pts /dev/shm /dev/mqueue /dev/hugepages
mount -t devpts -o nosuid,noexec,gid=5,mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o nosuid,nodev tmpfs /dev/shm
mount -t mqueue mqueue /dev/mqueue
mount -t hugetlbfs hugetlbfs /dev/hugepages
mount -t tmpfs -o nosuid,nodev,mode=755 tmpfs /run
mount -t securityfs securityfs /sys/kernel/security
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 -o nosuid,nodev,noexec,nsdelegate,memory_recursiveprot cgroup2 /sys/fs/cgroup
# As systemd has it: volumes and mounts of containers can reach each other where the pod asks for it.
mount --make-rshared /
ln -s /proc/self/fd /dev/fd
ln -s fd/0 /dev/stdin
ln -s fd/1 /dev/stdout
ln -s fd/2 /dev/stderr
hostname guest
# What a distribution would have installed for AppArmor's parser.
mkdir -p /usr/share /var/cache/apparmor
cp -a /programs/apparmor/. /
ip link set lo up
# In a child: this shell takes in the orphans while it waits.
/programs/run &
wait $!
poweroff -f
