# Third script of a board's cell: process 1 of the board. Starts adbd (and sshd), and again when it ends; reaps orphans.
set -eu
mount -t proc -o nosuid,nodev,noexec proc proc
# Each start of a board is a boot. /proc/sys is the host's kernel: read-only.
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount --bind run/boot_id proc/sys/kernel/random/boot_id
if [ -e proc/sysrq-trigger ]; then
  mount --bind proc/sysrq-trigger proc/sysrq-trigger
  mount -o remount,bind,ro proc/sysrq-trigger
fi
if [ -e run/cpuinfo ]; then
  mount --bind run/cpuinfo proc/cpuinfo
  mount -o remount,bind,ro proc/cpuinfo
fi
board() {
  env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 TMPDIR=/tmp ${QEMU_CPU:+"QEMU_CPU=$QEMU_CPU"} "$@"
}

# sshd needs no privilege to let in the one user it runs as.
if [ -d run/edgekit-ssh ]; then
  while :; do
    board HOME=/home/edgekit chroot . setpriv --reuid=1000 --regid=1000 --clear-groups --inh-caps=-all \
      --bounding-set=-all --no-new-privs /usr/sbin/sshd -D -e -f /run/edgekit-ssh/sshd_config || :
    sleep 0.2
  done &
fi

# Root on the board is not root on the host: no mounting, no device nodes, no tracing, no second chroot.
caps=-all,+chown,+dac_override,+fowner,+fsetid,+kill,+setgid,+setuid,+setpcap,+net_bind_service,+net_raw,+sys_nice
while :; do
  board HOME=/root chroot . setpriv --inh-caps=-all --bounding-set=$caps \
    /usr/lib/android-sdk/platform-tools/adbd || :
  sleep 0.1
done
