"""A Vagrant box of Debian 13 as a person installs it: systemd, control groups v2, AppArmor, a user and sshd.

Made natively from stacklab's own base image and Debian's packages, so it takes a minute on any machine. QEMU
starts its kernel; there is no boot loader. Certificates that this machine trusts beside Debian's go along, as
its network may need them.
"""

import json
import shutil
import subprocess
import tempfile
from pathlib import Path

from stacklab.children import BOUND_TREE
from stacklab.home import Home
from stacklab.host.apt import host_mirror
from stacklab.images.base import ensure_base
from stacklab.images.command import run_logged
from stacklab.images.initramfs import KERNEL
from stacklab.images.packages import Downloads, ensure_packages
from stacklab.images.store import Store
from stacklab.model.catalog import Catalog

PACKAGES = (
    KERNEL,
    "apparmor",
    "apparmor-utils",
    "git",
    "initramfs-tools",
    "rsync",
    "sudo",
    "systemd-resolved",
    "systemd-timesyncd",
    "udev",
)
UNITS = ("apparmor", "ssh", "systemd-networkd", "systemd-resolved", "systemd-timesyncd")
SIZE_GIB = 40
COMMAND_LINE = "root=/dev/vda rw console=ttyS0 net.ifnames=0"
# As for the nodes of labs (templates/libvirt/vm.xml.j2): what only costs an emulated processor time.
EMULATED = "mitigations=off clocksource=tsc tsc=reliable no_timer_check transparent_hugepage=never"
VAGRANTFILE = f"""\
Vagrant.configure("2") do |config|
  config.ssh.insert_key = false
  config.vm.provider :libvirt do |libvirt|
    libvirt.kernel = File.expand_path("vmlinuz", __dir__)
    libvirt.initrd = File.expand_path("initrd.img", __dir__)
    libvirt.cmd_line = "{COMMAND_LINE}" + (ENV["STACKLAB_BOX_DRIVER"] == "qemu" ? " {EMULATED}" : "")
    libvirt.disk_driver :cache => "unsafe" # a machine for one run
  end
end
"""
METADATA = {"provider": "libvirt", "format": "qcow2", "virtual_size": SIZE_GIB}
# https://github.com/hashicorp/vagrant/tree/main/keys: the key that Vagrant replaces when it first logs in.
KEYS = Path("/usr/share/rubygems-integration/all/gems").glob("vagrant-[0-9]*/keys/vagrant.pub")
CERTIFICATES = Path("/usr/local/share/ca-certificates")

# In the new system, as root.
SETUP = f"""
useradd --create-home --shell /bin/bash vagrant
install -d -o vagrant -g vagrant -m 0700 /home/vagrant/.ssh
install -o vagrant -g vagrant -m 0600 /vagrant.pub /home/vagrant/.ssh/authorized_keys
rm /vagrant.pub
echo 'vagrant ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/vagrant
echo typical > /etc/hostname
printf '127.0.0.1 localhost\\n127.0.1.1 typical\\n::1 localhost\\n' > /etc/hosts
echo '/dev/vda / ext4 defaults 0 1' > /etc/fstab
mkdir -p /etc/systemd/network
printf '[Match]\\nName=eth0\\n[Network]\\nDHCP=yes\\n' > /etc/systemd/network/eth0.network
ln -sf ../run/systemd/resolve/stub-resolv.conf /etc/resolv.conf
ssh-keygen -A
update-ca-certificates
systemctl enable {" ".join(UNITS)}
rm -f /etc/systemd/journald.conf.d/stacklab.conf /etc/dpkg/dpkg.cfg.d/*
update-initramfs -u -k all
"""
BUILD = """
mount -t overlay -o "volatile,lowerdir=$1,upperdir=$2/top,workdir=$2/work" overlay "$2/root"
for name in proc sys dev; do mount --rbind "/$name" "$2/root/$name"; done
mount -t tmpfs tmpfs "$2/root/run"
mount -t tmpfs tmpfs "$2/root/tmp"
chroot "$2/root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 sh -euxc "$3"
umount "$2/root/tmp" "$2/root/run"
for name in proc sys dev; do umount --recursive --lazy "$2/root/$name"; done
cp "$2"/root/boot/vmlinuz-* "$2/box/vmlinuz"
cp "$2"/root/boot/initrd.img-* "$2/box/initrd.img"
mke2fs -q -t ext4 -m 0 -E lazy_itable_init=1,nodiscard,root_owner=0:0 -d "$2/root" "$2/disk.raw" "$4"
qemu-img convert -f raw -O qcow2 -W "$2/disk.raw" "$2/box/box.img"
tar --create --sparse --file "$5" --directory "$2/box" .
"""


def make_box(target: Path, log: Path) -> None:
    """Make the box file `target`. log: takes what the tools print. Raises StepFailed with the end of it."""
    home = Home.from_environment()
    store, downloads = Store(home.cache / "images"), Downloads(home.cache / "packages")
    base = ensure_base(store, Catalog.load().release("epoxy"), host_mirror(), downloads.base, log)
    system = ensure_packages(store, base, PACKAGES, downloads, log)
    lower = ":".join(str(image.tree) for image in store.chain(system))
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        work = Path(folder)
        for name in ("box", "root", "work", "top/usr/local/share"):
            (work / name).mkdir(parents=True)
        shutil.copy(next(iter(KEYS)), work / "top" / "vagrant.pub")
        if CERTIFICATES.is_dir():
            shutil.copytree(CERTIFICATES, work / "top/usr/local/share/ca-certificates")
        (work / "box" / "Vagrantfile").write_text(VAGRANTFILE)
        (work / "box" / "metadata.json").write_text(json.dumps(METADATA))
        arguments = [lower, str(work), SETUP, f"{SIZE_GIB}G", str(target)]
        run_logged([*BOUND_TREE, "sh", "-euc", BUILD, "sh", *arguments], log, "making the box")
        # What overlay leaves in its work directory only root may remove, after a chmod.
        subprocess.run(["chmod", "-R", "u+rwx", str(work / "work")], check=True)
