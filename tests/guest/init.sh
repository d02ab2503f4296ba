#!/bin/busybox sh
# The guest's first process: modules, the host's files below a writable layer, control groups of version 2; then
# /bin/bash of those files runs what this boot is for. What it says goes to the console; only what is said on the
# status port counts (tests/guest/machine.py).
B=/bin/busybox
$B mount -t proc proc /proc
$B mount -t sysfs sys /sys
$B mount -t devtmpfs dev /dev
while read -r module; do $B insmod "/modules/$module"; done </modules/list

# The host gives its files read-only; what is written here is in this machine's memory and ends with it.
$B mount -t virtiofs -o ro host /host
$B mount -t tmpfs -o mode=755 layer /layer
$B mkdir /layer/upper /layer/work
$B mount -t overlay -o lowerdir=/host,upperdir=/layer/upper,workdir=/layer/work root /new
# A real disk, for what tests write: only there can io be limited.
$B mkdir -p /new/tmp
$B mount -t ext4 -o noatime /dev/vda /new/tmp
$B chmod 1777 /new/tmp
for place in proc sys dev; do
    $B mkdir -p "/new/$place"
    $B mount --move "/$place" "/new/$place"
done
$B mkdir -p /new/run /new/dev/pts /new/dev/shm
$B mount -t tmpfs -o mode=755 run /new/run
$B mount -t devpts -o ptmxmode=666 devpts /new/dev/pts
$B mount -t tmpfs -o mode=1777 shm /new/dev/shm
$B mount -t cgroup2 -o nsdelegate cgroup2 /new/sys/fs/cgroup
$B ifconfig lo 127.0.0.1 up
$B hostname guest
$B mkdir /new/run/guest
$B cp /bin/busybox /command.sh /main.sh /new/run/guest/
exec $B switch_root /new /bin/bash /run/guest/main.sh
