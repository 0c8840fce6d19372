#!/usr/bin/env bash
# The floor: the work that no builder of this cloud can avoid, as a plain script, and nothing else.
# It uploads no image, makes no network, boots no instance, checks nothing and records nothing.
#
# usage: floor.sh INPUTS WORK       as root; prints one line per stage: NAME SECONDS
#   INPUTS, written by layer1.py: mmdebstrap (a command line, one word per line; TREE stands for the folder),
#     packages.txt (one name per line), packages/ (the cache: archives, lists, base), install-packages (stacklab's script),
#     tree.tar.gz (the configuration), node.sh (what runs on the node), address (of the node)
#   WORK: a folder that does not exist yet; it is left for the caller to remove

set -euo pipefail

group=stacklab-floor

stage() {
  local name=$1 begin end
  shift
  begin=$(date +%s%N)
  "$@"
  end=$(date +%s%N)
  printf '%s %d.%03d\n' "$name" $(((end - begin) / 1000000000)) $(((end - begin) / 1000000 % 1000)) >&3
}

base_system() {
  local -a command
  mapfile -t command < <(sed "s|^TREE$|$tree|" "$inputs/mmdebstrap")
  "${command[@]}"
}

packages() {
  local -a names
  mapfile -t names <"$inputs/packages.txt"
  unshare --mount --pid --fork --kill-child sh "$inputs/install-packages" "$tree" "$inputs/packages/archives" \
    "$inputs/packages/lists" /etc/resolv.conf yes "${names[@]}"
}

hierarchies() { awk '$3 ~ /^cgroup2?$/ { print $2 }' /proc/mounts; }

# Runs as the child of start_node, in new namespaces: builds the node's view, then becomes its systemd.
become_node() {
  local names folder argument=()
  mount --bind "$tree" "$tree"
  cd "$tree"
  mount -t proc proc proc
  mount -t sysfs sysfs sys
  mount -t tmpfs -o mode=755 tmpfs run
  mount -t tmpfs -o mode=755 tmpfs dev
  mkdir dev/pts dev/shm dev/net
  mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts dev/pts
  mount -t tmpfs tmpfs dev/shm
  ln -s pts/ptmx dev/ptmx
  ln -s /proc/self/fd dev/fd
  for names in "null 1 3" "zero 1 5" "full 1 7" "random 1 8" "urandom 1 9" "tty 5 0" "net/tun 10 200"; do
    # shellcheck disable=SC2086
    set -- $names
    mknod -m 666 "dev/$1" c "$2" "$3"
  done
  : >dev/console
  if [[ -n $(cut -d: -f2 /proc/self/cgroup | tr -d '\n') ]]; then
    mount -t tmpfs -o mode=755 tmpfs sys/fs/cgroup
    while IFS=: read -r _ names _; do
      [[ -n $names ]] || continue
      folder=sys/fs/cgroup/${names#name=}
      mkdir "$folder"
      case $names in
        name=*) mount -t cgroup -o "none,$names" cgroup "$folder" ;;
        *) mount -t cgroup -o "$names" cgroup "$folder" ;;
      esac
    done </proc/self/cgroup
    argument=(SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1 systemd.legacy_systemd_cgroup_controller=1)
  else
    mount -t cgroup2 cgroup2 sys/fs/cgroup
  fi
  ip link set lo up
  ip link add eth0 type veth peer name cable0
  ip link add eth1 type veth peer name cable1
  for names in eth0 eth1 cable0 cable1; do ip link set "$names" up; done
  ip address add "$(<"$inputs/address")/24" dev eth0
  mkdir -p old
  pivot_root . old
  umount --lazy /old
  exec env -i container=lxc /sbin/init "${argument[@]}"
}

start_node() {
  local folder top
  (
    for top in $(hierarchies); do
      folder=$top/$group
      mkdir -p "$folder"
      for names in cpuset.cpus cpuset.mems; do # a new v1 cpuset takes no process until it has some
        if [[ -e $folder/$names && -z $(<"$folder/$names") ]]; then cat "$top/$names" >"$folder/$names"; fi
      done
      echo "$BASHPID" >"$folder/cgroup.procs"
    done
    exec unshare --mount --pid --net --uts --ipc --cgroup --fork --kill-child --propagation private \
      bash "$0" --become-node "$inputs" "$work"
  ) </dev/null >>"$work/console" 2>&1 &
  node=$!
}

stop_node() {
  local top
  [[ -n ${node:-} ]] || return 0
  kill -KILL "$node" 2>/dev/null || true
  wait "$node" 2>/dev/null || true
  for top in $(hierarchies); do
    for _ in {1..100}; do # its last processes may need a moment to go
      find "$top/$group" -depth -type d -exec rmdir {} \; 2>/dev/null || true
      [[ -d $top/$group ]] || break
      sleep 0.05
    done
  done
}

finish() {
  local status=$?
  ((status == 0)) || tail -n 30 "$work/log" >&3
  stop_node
}

in_node() { nsenter --target "$init" --mount --uts --ipc --net --pid --cgroup -- "$@"; }

boot() {
  echo controller >"$tree/etc/hostname"
  printf '127.0.0.1 localhost\n%s controller\n' "$(<"$inputs/address")" >"$tree/etc/hosts"
  mkdir "$tree/floor"
  cp "$inputs/tree.tar.gz" "$inputs/node.sh" "$tree/floor"
  start_node
  until init=$(pgrep -P "$node") && in_node systemctl is-active --quiet multi-user.target 2>/dev/null; do
    kill -0 "$node" # fails the script when the node has ended
    sleep 0.05
  done
}

services() { in_node bash /floor/node.sh; }

if [[ $1 == --become-node ]]; then
  inputs=$2 tree=$3/tree
  become_node
fi
inputs=$1
work=$2
tree=$work/tree
mkdir "$work"
exec 3>&1 >"$work/log" 2>&1
trap finish EXIT
stage base base_system
stage packages packages
stage boot boot
stage services services
