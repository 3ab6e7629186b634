#!/bin/sh
# Runs the command with its output on the second serial port, and says its exit code on the third.
export PATH=/programs/bin:$PATH BOWLINE_PROGRAMS=/programs/bin
stty -F /dev/ttyS1 raw -echo
stty -F /dev/ttyS2 raw -echo
# Devices that cases give to containers, and an address that is not loopback; nothing is behind it.
modprobe -a loop tun fuse dummy
ip link add guest0 type dummy
ip address add 192.168.77.2/24 dev guest0
ip link set guest0 up
ip route add default via 192.168.77.1
cd /root
/programs/command </dev/null >/dev/ttyS1 2>&1
code=$?
# The last bytes are on their way when the program has written them: a change of modes waits for them.
stty -F /dev/ttyS1 sane raw -echo
echo $code >/dev/ttyS2
stty -F /dev/ttyS2 sane raw -echo
