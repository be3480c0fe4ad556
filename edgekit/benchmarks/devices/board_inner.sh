# Second script of a board's cell, in a network and a mount namespace of its own: builds the board's root.
# Arguments: link name, the board's address, the pid whose network gets the other end, tree, data, scratch,
# sshd's files or -, the emulated processor's /proc/cpuinfo or -.
#
# /dev is a tmpfs of the board's own. The host's is never bound here: deleting a tree would delete its devices.
set -eu
link=$1 address=$2 host_pid=$3 tree=$4 data=$5 scratch=$6 ssh=$7 cpuinfo=$8

ip link set dev lo up
ip link add eth0 type veth peer name "$link" netns "$host_pid"
ip addr add "$address/30" dev eth0
ip link set dev eth0 up
echo 0 > /proc/sys/net/ipv4/ip_unprivileged_port_start  # this network only: sshd listens on 22 without being root
echo edgekit-board > /proc/sys/kernel/hostname

mount -t tmpfs -o mode=0755,size=50% edgekit-board "$scratch"
cd "$scratch"
mkdir lower upper work root
# The tree is shared by all boards and read-only; what a board writes is gone when it ends.
mount --bind "$tree" lower
mount -o remount,bind,ro lower
mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work edgekit-board root 2>/dev/null || cp -a lower/. root/
cd root

mount -t sysfs -o ro,nosuid,nodev,noexec sysfs sys
mount -t tmpfs -o mode=0755,nosuid,size=1m edgekit-dev dev
mknod -m 666 dev/null c 1 3
mknod -m 666 dev/zero c 1 5
mknod -m 666 dev/full c 1 7
mknod -m 666 dev/random c 1 8
mknod -m 666 dev/urandom c 1 9
mknod -m 666 dev/tty c 5 0
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620,gid=5 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mount -t tmpfs -o mode=1777,nosuid,nodev,size=64m edgekit-shm dev/shm
mount -t tmpfs -o mode=1777,nosuid,nodev edgekit-tmp tmp
mount -t tmpfs -o mode=0755,nosuid,nodev edgekit-run run
mount --bind "$data" data/local/tmp/edgekit
cat /proc/sys/kernel/random/uuid > run/boot_id
if [ "$ssh" != - ]; then
  cp -r "$ssh" run/edgekit-ssh
  chown -R 1000:1000 run/edgekit-ssh
fi
if [ "$cpuinfo" != - ]; then
  cp "$cpuinfo" run/cpuinfo  # qemu shows the host's, and libraries that choose kernels by it then crash
fi

# A pid namespace of its own: the board sees its own processes only.
exec unshare --fork --pid --kill-child sh "${0%inner.sh}boot.sh"
