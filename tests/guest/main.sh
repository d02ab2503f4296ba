# The guest's PID 1 once the host's files are its root: runs /run/guest/command.sh and says on the status port how it
# ended. A write to the wrong port would not be heard, and the boot fails then: so does one that dies on the way here.
for port in /sys/class/virtio-ports/*; do
    read -r name <"$port/name"
    ln -s "/dev/${port##*/}" "/run/guest/$name"
done
read -r up _ </proc/uptime
echo "up $up" >/run/guest/status

# In a group of its own, as a service or a login session would be.
mkdir /sys/fs/cgroup/session
(
    echo "$BASHPID" >/sys/fs/cgroup/session/cgroup.procs
    exec setsid --wait /bin/bash /run/guest/command.sh </dev/null >/run/guest/output 2>&1
)
echo "exit $?" >/run/guest/status
exec /run/guest/busybox reboot -f
