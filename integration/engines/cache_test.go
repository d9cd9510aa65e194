package engines

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// enginePackages are unpacked with whatever they need that this machine lacks.
var enginePackages = []string{"docker.io", "containerd", "runc", "iptables", "debootstrap", "wget"}

// imagePackages are what the Debian image has beyond the minimum.
const imagePackages = "python3,git,curl,ca-certificates"

// cache is a directory with an unpacked engine and the layers of two images.
type cache string

func (c cache) engine() string  { return filepath.Join(string(c), "engine") }      // a root directory
func (c cache) cni() string     { return filepath.Join(string(c), "cni") }         // a root directory with network plugins
func (c cache) busybox() string { return filepath.Join(string(c), "busybox.tar") } // a root file system
func (c cache) debian() string  { return filepath.Join(string(c), "debian.tar") }  // the same

// path is where the engine's programs are found, and then the machine's.
func (c cache) path() string {
	var dirs []string
	for _, dir := range []string{"usr/local/sbin", "usr/sbin", "usr/bin", "sbin", "bin"} {
		dirs = append(dirs, filepath.Join(c.engine(), dir))
	}
	return strings.Join(append(dirs, "/usr/sbin", "/usr/bin", "/sbin", "/bin"), ":")
}

// libraries is where the engine's shared libraries are.
func (c cache) libraries() (string, error) {
	var dirs []string
	for _, pattern := range []string{"usr/lib/*-linux-gnu*", "lib/*-linux-gnu*"} {
		found, err := filepath.Glob(filepath.Join(c.engine(), pattern))
		if err != nil {
			return "", err
		}
		dirs = append(dirs, found...)
	}
	return strings.Join(dirs, ":"), nil
}

// extensions is where iptables finds its matches and targets.
func (c cache) extensions() (string, error) {
	found, err := filepath.Glob(filepath.Join(c.engine(), "usr/lib/*/xtables"))
	if err == nil && len(found) == 0 {
		err = errors.New("cannot find the extensions of iptables")
	}
	if err != nil {
		return "", err
	}
	return found[0], nil
}

// fetch returns the cache of this machine's distribution, after it was filled.
// What is there already is taken as it is; each part appears whole or not at
// all.
func fetch() (cache, error) {
	release, err := releaseName()
	if err != nil {
		return "", err
	}
	dir := os.Getenv("NEMOCLAW_CACHE")
	if dir == "" {
		dir = filepath.Join(repository(), ".cache", "engines")
	}
	c := cache(filepath.Join(dir, release))
	if err := os.MkdirAll(string(c), 0o755); err != nil {
		return "", fmt.Errorf("cannot make the cache: %w", err)
	}
	lock, err := os.Open(string(c))
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return "", fmt.Errorf("cannot lock the cache: %w", err)
	}
	for _, part := range []struct {
		file, does string
		make       func(to, scratch string) error
	}{
		{c.engine(), "unpack " + strings.Join(enginePackages, ", "), unpackEngine},
		{c.cni(), "unpack containernetworking-plugins", unpackPlugins},
		{c.busybox(), "make the busybox image", packBusybox},
		{c.debian(), "make the Debian image (a minute)", func(to, scratch string) error { return c.packDebian(release, to, scratch) }},
	} {
		if err := fill(part.file, part.does, part.make); err != nil {
			return "", fmt.Errorf("cannot %s: %w", part.does, err)
		}
	}
	return c, nil
}

// fill makes file, in a directory beside it, unless it is there.
func fill(file, does string, make func(to, scratch string) error) error {
	if _, err := os.Lstat(file); err == nil {
		return nil
	}
	began := time.Now()
	fmt.Fprintf(os.Stderr, "engines: %s ...\n", does)
	scratch, err := os.MkdirTemp(filepath.Dir(file), ".new-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	if err := os.Chmod(scratch, 0o755); err != nil { // apt's own user reads there
		return err
	}
	to := filepath.Join(scratch, "done")
	if err := make(to, scratch); err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "engines: %s: %.0f s\n", does, time.Since(began).Seconds())
	return os.Rename(to, file)
}

// releaseName is the distribution's code name, as in os-release(5).
func releaseName() (string, error) {
	f, err := os.Open("/etc/os-release")
	if err != nil {
		return "", fmt.Errorf("cannot tell the distribution: %w", err)
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if name, ok := strings.CutPrefix(s.Text(), "VERSION_CODENAME="); ok {
			return strings.Trim(name, `"`), nil
		}
	}
	return "", errors.New("cannot tell the distribution: /etc/os-release has no VERSION_CODENAME")
}

// unpackEngine asks apt what this machine would have to download to install
// the engine, and unpacks exactly that instead.
func unpackEngine(to, scratch string) error {
	args := []string{"install", "--download-only", "--reinstall", "--no-install-recommends", "--yes",
		"-o", "Dir::Cache::archives=" + scratch, "-o", "Debug::NoLocking=true"}
	if err := refresh(); err != nil {
		return err
	}
	if err := run("apt-get", append(args, enginePackages...)...); err != nil {
		return err
	}
	if err := unpack(scratch, to); err != nil {
		return err
	}
	// What the packages leave to update-alternatives.
	for _, name := range []string{"iptables", "iptables-save", "iptables-restore", "ip6tables", "ip6tables-save", "ip6tables-restore"} {
		err := os.Symlink("xtables-nft-multi", filepath.Join(to, "usr/sbin", name))
		if err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	return nil
}

// refresh gets apt's lists if it has none.
func refresh() error {
	if run("apt-cache", "show", "docker.io") == nil {
		return nil
	}
	return run("apt-get", "update")
}

func unpack(archives, to string) error {
	found, err := filepath.Glob(filepath.Join(archives, "*.deb"))
	if err != nil {
		return err
	}
	for _, deb := range found {
		if err := run("dpkg-deb", "-x", deb, to); err != nil {
			return err
		}
	}
	return nil
}

// unpackPlugins gets the network plugins that Kubernetes' container runtimes
// call.
func unpackPlugins(to, scratch string) error {
	if err := refresh(); err != nil {
		return err
	}
	download := exec.Command("apt-get", "download", "containernetworking-plugins")
	download.Dir = scratch
	if err := quietly(download); err != nil {
		return err
	}
	return unpack(scratch, to)
}

func packBusybox(to, scratch string) error {
	if err := refresh(); err != nil {
		return err
	}
	download := exec.Command("apt-get", "download", "busybox-static")
	download.Dir = scratch
	if err := quietly(download); err != nil {
		return err
	}
	root := filepath.Join(scratch, "root")
	if err := unpack(scratch, root); err != nil {
		return err
	}
	image := filepath.Join(scratch, "image")
	for _, dir := range []string{"bin", "etc", "proc", "sys", "dev", "tmp", "root", "home", "var/www"} {
		if err := os.MkdirAll(filepath.Join(image, dir), 0o755); err != nil {
			return err
		}
	}
	box, err := busyboxIn(root)
	if err != nil {
		return err
	}
	for name, text := range map[string]string{
		"etc/passwd":         "root:x:0:0:root:/root:/bin/sh\nagent:x:1000:1000::/home:/bin/sh\n",
		"etc/group":          "root:x:0:\nagent:x:1000:\n",
		"root/secret":        "the image's own secret\n",
		"var/www/index.html": "a page\n",
		"etc/not-a-program":  "#!/bin/sh\n",
	} {
		if err := os.WriteFile(filepath.Join(image, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	layout := exec.Command("sh", "-ec", `
		cp "$1" bin/busybox
		for name in $(bin/busybox --list); do [ $name = busybox ] || ln -s busybox bin/$name; done
		chmod 1777 tmp
		tar --numeric-owner --owner=0 --group=0 -cf "$2" .`, "layout", box, to)
	layout.Dir = image
	return quietly(layout)
}

func busyboxIn(root string) (string, error) {
	for _, name := range []string{"usr/bin/busybox", "bin/busybox"} {
		if _, err := os.Stat(filepath.Join(root, name)); err == nil {
			return filepath.Join(root, name), nil
		}
	}
	return "", errors.New("the package has no busybox")
}

// packDebian makes an image with the machine's own release, from where apt has
// its packages.
func (c cache) packDebian(release, to, scratch string) error {
	mirror, err := mirror(release)
	if err != nil {
		return err
	}
	root := filepath.Join(scratch, "root")
	cmd := exec.Command(filepath.Join(c.engine(), "usr/sbin/debootstrap"), "--variant=minbase", "--include="+imagePackages, release, root, mirror)
	libraries, err := c.libraries()
	if err != nil {
		return err
	}
	cmd.Env = append(os.Environ(), "DEBOOTSTRAP_DIR="+filepath.Join(c.engine(), "usr/share/debootstrap"),
		"PATH="+c.path(), "LD_LIBRARY_PATH="+libraries) // it downloads by wget
	if err := quietly(cmd); err != nil {
		return err
	}
	return run("tar", "-C", root, "--numeric-owner", "-cf", to, "--exclude=./var/cache/apt/*", "--exclude=./var/lib/apt/lists/*",
		"--exclude=./usr/share/doc/*", "--exclude=./usr/share/man/*", "--exclude=./usr/share/locale/*", "--exclude=./dev/*", ".")
}

// mirror is where apt gets the release's main packages from.
func mirror(release string) (string, error) {
	out, err := exec.Command("apt-get", "indextargets", "--format", "$(REPO_URI)",
		"Created-By: Packages", "Codename: "+release, "Component: main").Output()
	first, _, _ := strings.Cut(string(out), "\n")
	if err != nil || first == "" {
		return "", fmt.Errorf("cannot tell where apt has %s from: %v", release, err)
	}
	return first, nil
}

func run(program string, args ...string) error { return quietly(exec.Command(program, args...)) }

// quietly runs cmd and shows the end of its output only if it failed.
func quietly(cmd *exec.Cmd) error {
	out, err := cmd.CombinedOutput()
	if err == nil {
		return nil
	}
	lines := bytes.Split(bytes.TrimSpace(out), []byte("\n"))
	return fmt.Errorf("%s: %w\n%s", filepath.Base(cmd.Path), err, bytes.Join(lines[max(0, len(lines)-15):], []byte("\n")))
}
