#!/usr/bin/env bash
# The kernel side on another kernel: boots one of Debian's under qemu, this machine's files read-only below a layer in
# memory, and runs there with the loader core: doctor, the verifier, the packet table, and what attaches and lets go.
#   kernels.sh [package] [pytest argument …]      package: linux-image-amd64, or any linux-image-…-amd64 apt knows
# Needs qemu-system-x86 and root; changes nothing here. Without KVM it takes minutes. Exit status: 0 if all passed, 3 if
# something is missing.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
package=${1:-linux-image-amd64}
tests=("${@:2}")
[ ${#tests[@]} -gt 0 ] || tests=(tests/kernel/test_packets_headers.py tests/kernel/test_datapath_lifecycle.py
    tests/kernel/test_attachments.py tests/kernel/test_kernel_probes.py -k "not bcc and not probe_leaves_nothing")
modules=(virtio_pci 9pnet_virtio 9p overlay veth bridge sch_ingress cls_bpf cls_matchall act_gact)
fail() { printf 'kernels: %s\nkernels: %s\n' "$1" "$2" >&2; exit 3; }

command -v qemu-system-x86_64 >/dev/null || fail "there is no qemu-system-x86_64" "apt-get install qemu-system-x86"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch"
# A package without a version in its name depends on the one that has it.
image=$(apt-cache depends "$package" | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -1)
apt-get -qq -o APT::Sandbox::User=root download "${image:-$package}" busybox-static >/dev/null ||
    fail "${image:-$package} or busybox-static cannot be had" "apt-get update; apt-cache search linux-image"
for deb in ./*.deb; do dpkg-deb -x "$deb" unpacked; done
release=$(basename unpacked/lib/modules/*)
say() { printf 'kernels: %s\n' "$*" >&2; }
say "booting $release"

mkdir -p guest/{bin,sbin,proc,files,layer,machine} "guest/lib/modules/$release/kernel"
cp unpacked/bin/busybox guest/bin/
(cd "unpacked/lib/modules/$release" && cp --parents -r kernel/{drivers/virtio,drivers/net/veth.ko*,net/{9p,sched,bridge,llc,802}} \
    kernel/fs/{9p,netfs,fscache,overlayfs} modules.{order,builtin,builtin.modinfo} "$scratch/guest/lib/modules/$release" 2>/dev/null) || true
guest/bin/busybox depmod -b guest "$release"
cat >guest/init <<INIT
#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
for module in ${modules[*]}; do modprobe \$module; done
mount -t 9p -o ro,trans=virtio,version=9p2000.L,cache=loose,msize=262144 files /files || poweroff -f
mount -t tmpfs layer /layer
mkdir /layer/upper /layer/work
mount -t overlay -o lowerdir=/files,upperdir=/layer/upper,workdir=/layer/work machine /machine
for place in proc sys dev run tmp; do mkdir -p /machine/\$place; done
mount -t proc proc /machine/proc
mount -t sysfs sys /machine/sys
mount -t devtmpfs dev /machine/dev
mount -t tmpfs run /machine/run
mount -t tmpfs tmp /machine/tmp
cp /run.sh /machine/run/kernels.sh
chroot /machine /bin/bash /run/kernels.sh
poweroff -f
INIT
chmod +x guest/init
cat >guest/run.sh <<RUN
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb PYTHONDONTWRITEBYTECODE=1
mount -t bpf bpf /sys/fs/bpf
mkdir -p /dev/shm
ip link set lo up
cd "$root"
status=0
echo; uname -r
.venv/bin/ztlens doctor || status=1
.venv/bin/python -c '
from collector.kernel import libbpf
from collector.kernel.private import private_datapath
with private_datapath(loader="core") as datapath:
    for name, fd in datapath.handle.programs.items():
        print(f"{name:12} {libbpf.program_info(fd).verified:,} instructions verified")' || status=1
.venv/bin/python -m pytest -p no:cacheprovider -o timeout=0 -q $(printf ' %q' "${tests[@]}") || status=1
echo "kernels: status \$status"
RUN
(cd guest && find . | bin/busybox cpio -o -H newc 2>/dev/null) | gzip -1 >initramfs
qemu-system-x86_64 -accel tcg -cpu max -m 4096 -nographic -no-reboot -nic none \
    -kernel "unpacked/boot/vmlinuz-$release" -initrd initramfs -append "console=ttyS0 quiet panic=-1" \
    -fsdev local,id=files,path=/,security_model=none,readonly=on,multidevs=remap \
    -device virtio-9p-pci,fsdev=files,mount_tag=files </dev/null | tee console
exit "$(sed -n 's/.*kernels: status \([0-9]*\).*/\1/p' console | grep . || echo 3)"
