#!/bin/sh
# Runs the command with its output on the second serial port, and says its exit code on the third.
export PATH=/programs/bin:$PATH BOWLINE_PROGRAMS=/programs/bin
stty -F /dev/ttyS1 raw -echo
stty -F /dev/ttyS2 raw -echo
cd /root
/programs/command </dev/null >/dev/ttyS1 2>&1
code=$?
# The last bytes are on their way when the program has written them.
stty -F /dev/ttyS1 sane raw -echo
echo $code >/dev/ttyS2
stty -F /dev/ttyS2 sane raw -echo
