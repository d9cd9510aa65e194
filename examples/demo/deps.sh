#!/bin/sh
# What a build of nemoclaw, its tests and its demo need besides Go: says what is
# missing, and installs it where there is apt. A machine that could not run
# nemoclaw is told so, and left as it is.
set -eu

go=${GO:-go}
cc=${CC:-cc}
least_abi=3 # of Landlock: specs/landlock, MinABI

# fail MESSAGE [HINT]
fail() {
	echo "deps: $1" >&2
	[ $# -lt 2 ] || echo "hint: $2" >&2
	exit 1
}

# has_go: the version of this module, or later.
has_go() {
	version=$($go env GOVERSION 2>/dev/null) || return 1
	version=${version#go}
	major=${version%%.*}
	rest=${version#*.}
	minor=${rest%%[!0-9]*}
	[ "$major" -gt 1 ] || [ "$minor" -ge 26 ]
}

# links FLAGS: an empty program links statically with them.
links() {
	dir=$(mktemp -d)
	echo 'int main(void) { return 0; }' >"$dir/main.c"
	# shellcheck disable=SC2086 # FLAGS are words
	if $cc -static -o "$dir/main" "$dir/main.c" $1 2>/dev/null; then linked=0; else linked=1; fi
	rm -r "$dir"
	return $linked
}

has_seccomp() { flags=$(pkg-config --static --libs libseccomp 2>/dev/null) && links "$flags"; }

# ldd fails for a program that needs no library.
has_busybox() { file=$(command -v busybox) && ! ldd "$file" >/dev/null 2>&1; }

# landlock_abi: asked of the kernel (landlock_create_ruleset(2); its number is
# the same everywhere), -1 if there is none. Nothing is said without perl, which
# Debian and Ubuntu always have: nemoclaw doctor has the last word.
landlock_abi() { perl -e 'print syscall(444, 0, 0, 1)' 2>/dev/null || true; }

# able: stops unless this machine can run what we would install for.
able() {
	[ "$(uname -s)" = Linux ] || fail "cannot run nemoclaw here: this is not Linux"
	abi=$(landlock_abi)
	[ "${abi:-$least_abi}" -ge $least_abi ] && return
	[ "$abi" -gt 0 ] || abi=none
	fail "cannot run nemoclaw here: it needs Landlock ABI $least_abi (Linux 6.2), and this kernel has $abi" \
		"boot a newer kernel, or have lsm= on its command line begin with landlock; nothing was changed"
}

missing=
has_go || fail "cannot build: Go 1.26 or later is missing" "https://go.dev/dl"
links "" || missing="$missing gcc libc6-dev"
command -v pkg-config >/dev/null || missing="$missing pkg-config"
has_seccomp || missing="$missing libseccomp-dev"
has_busybox || missing="$missing busybox-static"
[ -n "$missing" ] || exit 0

echo "missing:$missing"
able
[ "$(id -u)" = 0 ] || fail "cannot install them: this needs root" "apt-get install$missing"
command -v apt-get >/dev/null || fail "cannot install them: there is no apt-get" "install what this system calls them"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# shellcheck disable=SC2086 # a list of words
apt-get install -y -qq --no-install-recommends $missing >/dev/null
echo "installed:$missing"
