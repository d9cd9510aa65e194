#!/bin/sh
# fetch.sh DIR: what a machine of its own is made of, out of Debian's packages:
#   DIR/qemu       a root directory with qemu, unpacked
#   DIR/new        the kernel of Debian 13, and DIR/old, that of Debian 12, as vmlinuz
#   DIR/root.img   Debian 13 with systemd and container engines, and the modules of both kernels
# The packages come from where apt has the machine's own. Nothing is installed.
set -eu
mkdir -p "$1"
dir=$(cd "$1" && pwd)
made=$(sha256sum "$0" | cut -d ' ' -f 1)
exec 9>"$dir/lock"
flock 9
[ "$(cat "$dir/made" 2>/dev/null)" != "$made" ] || exit 0

scratch=$(mktemp -d "$dir/.new-XXXXXX")
trap 'rm -rf "$scratch"' EXIT
chmod 755 "$scratch"
cd "$scratch"
say() { echo "vm: $*" >&2; }

# Quietly, but for what fails.
try() { "$@" >log 2>&1 || { tail -n 20 log >&2; exit 1; }; }

say "unpack qemu ..."
apt-cache show qemu-system-x86 >/dev/null 2>&1 || try apt-get update
mkdir -p debs/partial qemu
try apt-get install --download-only --reinstall --no-install-recommends --yes -o APT::Sandbox::User=root \
	-o Dir::Cache::archives="$PWD/debs" -o Debug::NoLocking=true qemu-system-x86 mmdebstrap
for deb in debs/*.deb; do
	dpkg-deb -x "$deb" qemu
done

# Two releases side by side, of which apt on this machine need know neither.
base=$(apt-get indextargets --format '$(REPO_URI)' "Created-By: Packages" "Origin: Debian" "Component: main" | head -n 1)
key=/usr/share/keyrings/debian-archive-keyring.gpg
mkdir -p lists/partial
: >status
for release in bookworm trixie; do
	echo "deb [signed-by=$key] $base $release main" >>sources.list
done
cat >apt.conf <<END
Dir::Etc::sourcelist "$PWD/sources.list";
Dir::Etc::sourceparts "-";
Dir::State::lists "$PWD/lists";
Dir::State::status "$PWD/status";
Dir::Cache "$PWD";
APT::Sandbox::User "root";
END
export APT_CONFIG="$PWD/apt.conf"

say "unpack the kernels of Debian 12 and 13 ..."
try apt-get update
for kernel in old:bookworm new:trixie; do
	release=${kernel#*:}
	to=${kernel%:*}
	package=$(apt-cache show "linux-image-cloud-amd64/$release" | sed -n 's/^Depends: \(linux-image-[^ ,]*\).*/\1/p' | head -n 1)
	try apt-get download "$package"
	dpkg-deb -x "$package"_*.deb "$to.root"
	cp "$to.root"/boot/vmlinuz-* "$to"
done
unset APT_CONFIG

say "make the file system (a minute or two) ..."
PERL5LIB=qemu/usr/share/perl5 try perl qemu/usr/bin/mmdebstrap --mode=root --variant=apt --format=directory \
	--aptopt='APT::Install-Recommends "false"' --aptopt='APT::Sandbox::User "root"' \
	--include=systemd-sysv,dbus,udev,kmod,iproute2,nftables,iptables,procps,busybox-static,libseccomp2,ca-certificates,curl,e2fsprogs,strace \
	--include=docker.io,docker-cli,containerd,runc,crun,podman,netavark,aardvark-dns,containernetworking-plugins \
	trixie root "deb [signed-by=$key] $base trixie main"
mkdir -p root/usr/lib/modules
for kernel in old new; do
	for modules in "$kernel".root/lib/modules/* "$kernel".root/usr/lib/modules/*; do
		[ ! -d "$modules" ] || { cp -r "$modules" root/usr/lib/modules/ && chroot root depmod "${modules##*/}"; }
	done
done

# It boots to one program, which does what it is told over a serial line. No
# engine runs unless it is told to, nothing at its own time.
rm -rf root/var/log/journal root/usr/share/doc root/usr/share/man root/usr/share/locale root/etc/systemd/system/*.wants
echo "vm" >root/etc/hostname
tr -d - </proc/sys/kernel/random/uuid >root/etc/machine-id
cat >root/etc/systemd/system/agent.service <<'END'
[Unit]
Requires=basic.target dbus.socket
After=basic.target dbus.socket
AllowIsolate=yes
[Service]
Environment=HOME=/root TMPDIR=/var/tmp NO_COLOR=1
ExecStart=/agent
StandardInput=tty
StandardOutput=tty
TTYPath=/dev/ttyS1
Delegate=yes
TasksMax=infinity
LimitNOFILE=1048576
END
cat >root/agent <<'END'
#!/bin/bash
# A script ends with \001. What it says is followed by a line "\001STATUS".
stty raw -echo
printf '\n\0010\n'
while IFS= read -r -d $'\001' script; do
	bash -c "$script" </dev/null 2>&1
	printf '\n\001%d\n' $?
done
END
chmod 755 root/agent
try mke2fs -q -t ext4 -d root root.img 4G

for part in qemu old new root.img; do
	rm -rf "$dir/$part"
	mv "$part" "$dir/$part"
done
echo "$made" >"$dir/made"
