#!/bin/sh
# fetch.sh DIR: what makes and runs programs for arm64 on another machine, as
# DIR/cc and DIR/qemu: the machine's own, else Debian's packages, unpacked there.
# Nothing is installed.
set -eu
mkdir -p "$1"
dir=$(cd "$1" && pwd)
exec 9>"$dir/lock"
flock 9
[ ! -x "$dir/cc" ] || [ ! -x "$dir/qemu" ] || exit 0

scratch=$(mktemp -d "$dir/.new-XXXXXX")
trap 'rm -rf "$scratch"' EXIT
chmod 755 "$scratch" # apt's own user writes there
cd "$scratch"

known() { apt-cache show "$1" >/dev/null 2>&1; }
known qemu-user-static || apt-get update -qq

if found=$(command -v aarch64-linux-gnu-gcc); then
	ln -sfn "$found" "$dir/cc"
else
	gcc=$(apt-cache depends gcc-aarch64-linux-gnu | sed -n 's/.*Depends: \(gcc-[0-9]*-aarch64-linux-gnu\)$/\1/p' | head -n 1)
	version=${gcc#gcc-}
	version=${version%%-*}
	apt-get download -qq "$gcc" "cpp-$version-aarch64-linux-gnu" binutils-aarch64-linux-gnu linux-libc-dev-arm64-cross 2>/dev/null
	for deb in *.deb; do
		dpkg-deb -x "$deb" root
		rm "$deb"
	done
	rm -rf "$dir/root"
	mv root "$dir/root"
	cat >"$scratch/cc" <<-END
		#!/bin/sh
		LD_LIBRARY_PATH=$dir/root/usr/lib/$(uname -m)-linux-gnu exec $dir/root/usr/bin/aarch64-linux-gnu-gcc-$version -isystem $dir/root/usr/aarch64-linux-gnu/include "\$@"
	END
	chmod +x "$scratch/cc"
	mv "$scratch/cc" "$dir/cc"
fi

if found=$(command -v qemu-aarch64-static || command -v qemu-aarch64); then
	ln -sfn "$found" "$dir/qemu"
else
	# Where qemu-user-static is an empty package, qemu-user needs no library.
	apt-get download -qq qemu-user-static qemu-user 2>/dev/null
	for deb in *.deb; do
		name=$(dpkg-deb --fsys-tarfile "$deb" | tar -t | grep -E '/bin/qemu-aarch64(-static)?$' | tail -n 1) || continue
		dpkg-deb --fsys-tarfile "$deb" | tar -x "$name"
		"$name" --version >/dev/null 2>&1 || continue
		mv "$name" "$dir/qemu"
		break
	done
	test -x "$dir/qemu"
fi
