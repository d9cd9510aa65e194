package runtime

import (
	"bufio"
	"bytes"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	oci "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"nemoclaw/egress/control"
	"nemoclaw/specs"
	"nemoclaw/specs/policy"
	"nemoclaw/specs/settings"
)

// Survey finds out what specs must know of the host and the bundle. stateDir is
// where the sandbox's own files will be.
func Survey(spec *oci.Spec, p *Chosen, s *settings.Settings, stateDir string) (specs.Host, error) {
	abi, err := ProbeLandlock()
	if err != nil {
		return specs.Host{}, err
	}
	root, err := rootfs(spec)
	if err != nil {
		return specs.Host{}, err
	}
	host := specs.Host{
		LandlockABI:      abi,
		SELinuxEnforcing: SELinuxEnforcing(),
		RunDir:           s.RunDir,
		LogDir:           s.LogDir,
		PolicyFile:       p.Path,
		ConfigDirs:       []string{filepath.Dir(settings.File), s.PolicyDir},
		Volumes:          volumes(spec),
		SharesIPC:        sharesIPC(spec),
		HasResolvConf:    hasResolvConf(spec, root),
		ResolvConf:       filepath.Join(stateDir, resolvConf),
		Missing:          map[string]bool{},
		Empty:            map[string]bool{},
	}
	if resolved, err := filepath.EvalSymlinks(p.Path); err == nil && p.Path != "" {
		host.PolicyFile = resolved
	}
	for _, f := range p.Filesystem.ReadWrite {
		host.Missing[f.Name], host.Empty[f.Name] = look(root, f.Name)
	}
	return host, nil
}

// resolvConf is the file in the state directory that is mounted where an image
// has none.
const resolvConf = "resolv.conf"

// sharesIPC reports whether the ipc namespace that spec names is our own.
func sharesIPC(spec *oci.Spec) bool {
	if spec.Linux == nil {
		return false
	}
	own, err := os.Stat("/proc/self/ns/ipc")
	return slices.ContainsFunc(spec.Linux.Namespaces, func(n oci.LinuxNamespace) bool {
		if n.Type != oci.IPCNamespace || n.Path == "" {
			return false
		}
		named, nerr := os.Stat(n.Path)
		return err != nil || nerr != nil || os.SameFile(own, named)
	})
}

func rootfs(spec *oci.Spec) (string, error) {
	if spec.Root == nil {
		return filepath.Abs("rootfs")
	}
	return filepath.Abs(spec.Root.Path)
}

// look reports whether root has nothing at name, or an empty directory.
func look(root, name string) (missing, empty bool) {
	fd, err := openIn(root, name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err == unix.ENOENT, false
	}
	dir := os.NewFile(uintptr(fd), name)
	defer dir.Close()
	_, err = dir.ReadDir(1)
	return false, err == io.EOF
}

// openIn opens name below root, which is the image's to arrange: a symbolic
// link in it never leads out.
func openIn(root, name string, flags uint64) (int, error) {
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(dir)
	return unix.Openat2(dir, name, &unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS})
}

func hasResolvConf(spec *oci.Spec, root string) bool {
	for _, m := range spec.Mounts {
		if filepath.Clean(m.Destination) == "/etc/resolv.conf" || filepath.Clean(m.Destination) == "/etc" {
			return true
		}
	}
	fd, err := openIn(root, "/etc/resolv.conf", unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return false
	}
	f := os.NewFile(uintptr(fd), "resolv.conf")
	defer f.Close()
	st, err := f.Stat()
	return err == nil && st.Mode().IsRegular() && len(nameservers(io.LimitReader(f, maxResolvConf))) > 0
}

// maxResolvConf is how much of an image's resolv.conf is read, in bytes: the
// image may have made it as long as it likes.
const maxResolvConf = 64 << 10

// volumes describes the spec's bind mounts.
func volumes(spec *oci.Spec) []specs.Volume {
	var out []specs.Volume
	var listening []string
	for _, m := range spec.Mounts {
		if !isBind(m) {
			continue
		}
		source, err := filepath.Abs(m.Source)
		if err != nil {
			source = m.Source
		}
		v := specs.Volume{Source: source, Resolved: source, Destination: m.Destination, Kind: specs.File,
			ReadOnly: slices.Contains(m.Options, "ro") || slices.Contains(m.Options, "rro")}
		if resolved, err := filepath.EvalSymlinks(source); err == nil {
			v.Resolved = resolved
		}
		if st, err := statExactly(v.Resolved); err == nil {
			v.Kind, v.Dev, v.Ino = kind(st.Mode), st.Dev, st.Ino
			v.Rdev, v.Block = st.Rdev, st.Mode&unix.S_IFMT == unix.S_IFBLK
		}
		if v.Kind == specs.Directory {
			if listening == nil {
				listening = append(listeningSockets(), "")
			}
			v.Sockets = slices.DeleteFunc(slices.Clone(listening), func(s string) bool { return !strings.HasPrefix(s, strings.TrimSuffix(v.Resolved, "/")+"/") })
		}
		out = append(out, v)
	}
	return out
}

func isBind(m oci.Mount) bool {
	return m.Type == "bind" || slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind")
}

// statExactly describes what has the name file itself: if a link was put on the
// way since it was resolved, that is an error.
func statExactly(file string) (st unix.Stat_t, err error) {
	fd, err := unix.Openat2(unix.AT_FDCWD, file, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS})
	if err != nil {
		return st, err
	}
	defer unix.Close(fd)
	err = unix.Fstat(fd, &st)
	return st, err
}

func kind(mode uint32) specs.Kind {
	switch mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return specs.Directory
	case unix.S_IFSOCK:
		return specs.Socket
	case unix.S_IFCHR, unix.S_IFBLK:
		return specs.Device
	}
	return specs.File
}

// listeningSockets returns the paths of unix sockets of this network namespace
// that accept connections (proc_net_unix: flag 0x10000, __SO_ACCEPTCON).
func listeningSockets() []string {
	b, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		return nil
	}
	var paths []string
	for line := range strings.Lines(string(b)) {
		// Num RefCount Protocol Flags Type St Inode Path
		f := strings.Fields(line)
		if len(f) >= 8 && f[3] == "00010000" && strings.HasPrefix(f[7], "/") {
			paths = append(paths, f[7])
		}
	}
	return paths
}

// resolvers returns the name servers and search domains that the engine meant
// for the container: those of the file it mounts at /etc/resolv.conf, unless a
// program could have written it by another name.
func resolvers(spec *oci.Spec) (servers, search []string) {
	for _, m := range spec.Mounts {
		if filepath.Clean(m.Destination) != "/etc/resolv.conf" || isWritten(spec, m.Source) {
			continue
		}
		b, err := os.ReadFile(m.Source)
		if err != nil {
			continue
		}
		return nameservers(bytes.NewReader(b)), searchDomains(bytes.NewReader(b))
	}
	return nil, nil
}

// Where a host says which name servers it asks, and where systemd-resolved says
// which it asks itself. The second file stays when that is stopped.
const (
	hostResolvConf = "/etc/resolv.conf"
	behindTheStub  = "/run/systemd/resolve/resolv.conf"
)

// hostResolvers returns the name servers of this host. systemd-resolved's stub
// answers on a loopback address, which is nobody's in another namespace: the
// servers behind it are named by a file of its own.
func hostResolvers(file, behind string) []string {
	servers := resolversIn(file)
	if others := resolversIn(behind); len(notLoopback(servers)) == 0 && len(others) > 0 {
		return others
	}
	return servers
}

func resolversIn(file string) []string {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil
	}
	return nameservers(bytes.NewReader(b))
}

// nameservers returns those of a resolv.conf(5), and ignores as the C library
// does what is no address.
func nameservers(r io.Reader) []string {
	var out []string
	for s := bufio.NewScanner(r); s.Scan(); {
		f := strings.Fields(s.Text())
		if len(f) < 2 || f[0] != "nameserver" {
			continue
		}
		if _, err := netip.ParseAddr(f[1]); err == nil {
			out = append(out, f[1])
		}
	}
	return out
}

// searchDomains returns those of the last search or domain line (resolv.conf(5)).
func searchDomains(r io.Reader) []string {
	var out []string
	for s := bufio.NewScanner(r); s.Scan(); {
		if f := strings.Fields(s.Text()); len(f) >= 2 && (f[0] == "search" || f[0] == "domain") {
			out = f[1:]
		}
	}
	return out
}

// isWritten reports whether source lies in a volume that the container may write:
// then a program that was in it before chose what is there.
func isWritten(spec *oci.Spec, source string) bool {
	at, err := filepath.EvalSymlinks(source)
	return err != nil || slices.ContainsFunc(spec.Mounts, func(m oci.Mount) bool {
		if !isBind(m) || slices.Contains(m.Options, "ro") {
			return false
		}
		dir, err := filepath.EvalSymlinks(m.Source)
		return err == nil && at != dir && strings.HasPrefix(at, dir+"/")
	})
}

// maxHosts is how many lines of a hosts file count.
const maxHosts = 1000

// hosts returns what the container's hosts file says, by which engines name the
// host and neighbours. It must be the engine's or read-only: whoever can write
// it could give an allowed name to any address, to be believed at the next
// create.
func hosts(spec *oci.Spec) (found []control.Host) {
	for _, m := range spec.Mounts {
		if filepath.Clean(m.Destination) != "/etc/hosts" || !isBind(m) {
			continue
		}
		if !slices.Contains(m.Options, "ro") && !specs.FromEngine(m.Source) || isWritten(spec, m.Source) {
			continue
		}
		f, err := os.OpenFile(m.Source, os.O_RDONLY|unix.O_NONBLOCK, 0)
		if err != nil {
			continue
		}
		defer f.Close()
		found = parseHosts(io.LimitReader(f, maxResolvConf), spec.Hostname)
	}
	return found
}

// parseHosts reads the lines of hosts(5) that name something outside of the
// container: neither loopback nor the container itself, called self.
func parseHosts(r io.Reader, self string) (found []control.Host) {
	for s := bufio.NewScanner(r); s.Scan() && len(found) < maxHosts; {
		text, _, _ := strings.Cut(s.Text(), "#")
		fields := strings.Fields(text)
		if len(fields) < 2 {
			continue
		}
		addr, err := netip.ParseAddr(fields[0])
		if err != nil || addr.Zone() != "" || addr.IsLoopback() || addr.IsUnspecified() || addr.IsMulticast() || addr.IsLinkLocalUnicast() {
			continue
		}
		var names []string
		for _, f := range fields[1:] {
			if name, err := policy.NormalHost(f); err == nil && f != self {
				names = append(names, name)
			}
		}
		if len(names) > 0 {
			found = append(found, control.Host{Addr: addr, Names: names})
		}
	}
	return found
}
