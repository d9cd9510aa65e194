package integration

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// debianPackages are what people do their work with in images that are made of
// Debian, and the compilers for the test's own programs.
const debianPackages = "bash coreutils dash findutils grep gzip sed tar procps python3 python3-venv python3-pip nodejs npm git gcc libc6-dev " +
	"musl musl-dev musl-tools default-jre-headless ecj " +
	"curl openssh-client openssh-server postgresql redis-server"

// unpackDebian makes a root file system in the directory done out of packages
// and all that they need, without running any of their scripts: apt is told of
// a machine on which nothing is installed.
const unpackDebian = `
mkdir -p archives/partial done/usr/bin done/usr/sbin done/usr/lib done/usr/lib64
for d in bin sbin lib lib64; do ln -s usr/$d done/$d; done
: >status
apt-cache show npm >/dev/null 2>&1 || apt-get update
apt-get install --download-only --no-install-recommends --yes -o Dir::State::status="$PWD/status" \
	-o Dir::Cache::archives="$PWD/archives" -o Debug::NoLocking=true -o APT::Sandbox::User=root $PACKAGES
for deb in archives/*.deb; do
	dpkg-deb --fsys-tarfile "$deb" | tar -C done -xf - --keep-directory-symlink \
		--exclude='./usr/share/doc/*' --exclude='./usr/share/man/*' --exclude='./usr/share/locale/*'
done
printf 'root:x:0:0:root:/root:/bin/bash\nagent:x:1000:1000::/home/agent:/bin/bash\n' >done/etc/passwd
printf 'root:x:0:\nagent:x:1000:\n' >done/etc/group
mkdir -p done/home/agent
`

// debianRoot is a Debian root file system that no test may change, made once in
// the cache.
var debianRoot = sync.OnceValues(func() (string, error) {
	return unpacked("debian", debianPackages+unpackDebian, unpackDebian, "PACKAGES="+debianPackages)
})

// unpacked is a directory in the cache that a script makes of Debian's packages,
// as "done" below its own. It is made once for a key, which is all that the
// script depends on.
func unpacked(name, key, script string, env ...string) (string, error) {
	if _, err := exec.LookPath("apt-get"); err != nil {
		return "", fmt.Errorf("cannot get Debian's packages of %s: %w", name, err)
	}
	sum := sha256.Sum256([]byte(key))
	root, err := cached(name + "-" + hex.EncodeToString(sum[:4]))
	if err != nil {
		return "", err
	}
	lock, err := os.Open(filepath.Dir(root))
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return "", fmt.Errorf("cannot lock the cache: %w", err)
	}
	if _, err := os.Lstat(root); err == nil {
		return root, nil
	}
	scratch, err := os.MkdirTemp(filepath.Dir(root), ".new-*")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(scratch)
	sh := exec.Command("sh", "-ec", script)
	sh.Dir = scratch
	sh.Env = append(append(os.Environ(), "DEBIAN_FRONTEND=noninteractive"), env...)
	if out, err := sh.CombinedOutput(); err != nil {
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		return "", fmt.Errorf("cannot get Debian's packages of %s: %w: %s", name, err, strings.Join(lines[max(0, len(lines)-10):], "\n"))
	}
	return root, os.Rename(filepath.Join(scratch, "done"), root)
}
