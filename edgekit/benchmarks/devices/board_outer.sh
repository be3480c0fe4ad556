# First script of a board's cell, in the host's network: makes the board, its link and its adb server.
# Arguments: link name, this end's address, the board's address, adb, the server's port, board_inner.sh, tree,
# data, scratch, sshd's files or -, the emulated processor's /proc/cpuinfo or -.
set -u
link=$1 here=$2 there=$3 adb=$4 port=$5 script=$6 tree=$7 data=$8 scratch=$9
shift 9

# The board makes the pair of interfaces and leaves one end in this script's network, found by its pid.
unshare --net --mount --uts --ipc --propagation private \
  sh "$script" "$link" "$there" "$$" "$tree" "$data" "$scratch" "$1" "$2" </dev/null >&2 &
inner=$!

i=0
until ip link show dev "$link" >/dev/null 2>&1; do
  i=$((i+1))
  if [ $i -gt 500 ] || ! kill -0 $inner 2>/dev/null; then echo "board: no link" >&2; exit 1; fi
  sleep 0.02
done
ip addr add "$here/30" dev "$link" && ip link set dev "$link" up || exit 1

# Its own server: it sees this board only, no USB device is taken from the user's server.
ADB_USB=0 ADB_EMU=0 ADB_MDNS=0 "$adb" -L "tcp:localhost:$port" server nodaemon </dev/null >&2 &
echo ready
wait $inner
