package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// unpacked is the root file system with squid and mitmproxy, in the cache.
const unpacked = "proxies"

// unpackScript makes it in the directory done, without running any package's
// scripts: apt is told of a machine on which nothing is installed.
const unpackScript = `
mkdir -p archives/partial done/usr/bin done/usr/sbin done/usr/lib done/usr/lib64
for d in bin sbin lib lib64; do ln -s usr/$d done/$d; done
: >status
apt-cache show mitmproxy >/dev/null 2>&1 || apt-get update
apt-get install --download-only --no-install-recommends --yes -o Dir::State::status="$PWD/status" \
	-o Dir::Cache::archives="$PWD/archives" -o Debug::NoLocking=true -o APT::Sandbox::User=root squid mitmproxy
for deb in archives/*.deb; do
	dpkg-deb --fsys-tarfile "$deb" | tar -C done -xf - --keep-directory-symlink \
		--exclude='./usr/share/doc/*' --exclude='./usr/share/man/*' --exclude='./usr/share/locale/*'
done
mkdir -p done/dev done/proc done/tmp
printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n' >done/etc/passwd
printf 'root:x:0:\nnogroup:x:65534:\n' >done/etc/group
`

// unpackProxies makes the proxies' root out of Debian's packages. It is made
// once.
func unpackProxies(ctx context.Context, cache string) error {
	root := filepath.Join(cache, unpacked)
	if exists(root) {
		return nil
	}
	scratch, err := os.MkdirTemp(cache, "unpack-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	sh := exec.CommandContext(ctx, "sh", "-ec", unpackScript)
	sh.Dir = scratch
	sh.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
	if out, err := sh.CombinedOutput(); err != nil {
		lines := bytes.Split(bytes.TrimSpace(out), []byte("\n"))
		return fmt.Errorf("cannot get squid and mitmproxy: %w: %s", err, lines[len(lines)-1])
	}
	return os.Rename(filepath.Join(scratch, "done"), root)
}

// debianRoot mounts the proxies' root below a writable layer, for as long as
// the throw-away host lives.
func (b *bench) debianRoot() (string, error) {
	lower := filepath.Join(b.repo, ".cache", "bench", unpacked)
	if !exists(lower) {
		return "", errNotInstalled
	}
	if b.debian != "" {
		return b.debian, nil
	}
	root, upper, work := filepath.Join(b.scratch, "proxies"), filepath.Join(b.scratch, "proxies.upper"), filepath.Join(b.scratch, "proxies.work")
	for _, dir := range []string{root, upper, work} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return "", err
		}
	}
	err := errors.Join(
		unix.Mount("overlay", root, "overlay", 0, fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", lower, upper, work)),
		unix.Mount("/dev", filepath.Join(root, "dev"), "", unix.MS_BIND|unix.MS_REC, ""),
		unix.Mount("proc", filepath.Join(root, "proc"), "proc", 0, ""))
	if err != nil {
		return "", fmt.Errorf("cannot mount the proxies' root: %w", err)
	}
	b.debian = root
	return root, nil
}
