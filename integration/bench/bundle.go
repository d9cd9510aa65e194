package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/moby/profiles/seccomp"
	oci "github.com/opencontainers/runtime-spec/specs-go"
)

// clientProgram is this program inside of a container.
const clientProgram = "/usr/bin/bench"

// profile is the seccomp profile that a bundle has.
type profile string

// The profiles.
const (
	noProfile     profile = "no seccomp in the bundle"
	dockerProfile profile = "Docker's default profile in the bundle"
)

// makeRootfs makes an image of busybox and of this program.
func (b *bench) makeRootfs() error {
	root := b.rootfs()
	for _, dir := range []string{"bin", "usr/bin", "etc", "proc", "sys", "dev", "tmp"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return err
		}
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return fmt.Errorf("cannot make an image: %w (a static one is needed)", err)
	}
	if err := errors.Join(copyProgram(busybox, filepath.Join(root, "bin/busybox")), copyProgram("/proc/self/exe", filepath.Join(root, clientProgram))); err != nil {
		return err
	}
	if out, err := exec.Command("chroot", root, "/bin/busybox", "--install", "-s", "/bin").CombinedOutput(); err != nil {
		return fmt.Errorf("cannot make an image: busybox --install: %w: %s", err, out)
	}
	if out, err := exec.Command("chroot", root, clientProgram, clientArg).CombinedOutput(); err != nil {
		return fmt.Errorf("cannot run this program in an image; build it with CGO_ENABLED=0: %w: %s", err, out)
	}
	return nil
}

func (b *bench) rootfs() string { return filepath.Join(b.scratch, "rootfs") }

func copyProgram(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// bundle makes a bundle called name that runs args in root, as "docker run"
// would write it but for the network, which nobody plugs in.
func (b *bench) bundle(name string, p profile, root string, args ...string) (string, error) {
	return b.bundleIn(name, p, root, "", args...)
}

// bundleIn is bundle, in the network namespace at the path network unless that
// is empty.
func (b *bench) bundleIn(name string, p profile, root, network string, args ...string) (string, error) {
	name = strings.NewReplacer(" ", "-", ",", "", ":", "").Replace(name)
	spec := plainSpec(root, filepath.Join("/", b.cgroup, name), args)
	if network != "" {
		joinNetwork(spec, network)
	}
	if p == dockerProfile {
		var err error
		if spec.Linux.Seccomp, err = seccomp.GetDefaultProfile(spec); err != nil {
			return "", fmt.Errorf("cannot make Docker's profile: %w", err)
		}
	}
	dir := filepath.Join(b.scratch, "bundles", name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	return dir, writeJSON(filepath.Join(dir, "config.json"), spec)
}

// plainSpec is written for the oldest version of the specification that the
// contestants speak.
func plainSpec(root, cgroup string, args []string) *oci.Spec {
	caps := []string{"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID",
		"CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE"}
	mount := func(at, kind, source string, options ...string) oci.Mount {
		return oci.Mount{Destination: at, Type: kind, Source: source, Options: options}
	}
	spec := &oci.Spec{
		Version: "1.0.2",
		Root:    &oci.Root{Path: root},
		Process: &oci.Process{
			Args: args, Cwd: "/", Env: []string{"PATH=/usr/local/bin:/usr/bin:/bin", "HOME=/tmp"},
			Capabilities: &oci.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
		},
		Mounts: []oci.Mount{
			mount("/proc", "proc", "proc", "nosuid", "noexec", "nodev"),
			mount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
			mount("/dev/pts", "devpts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
			mount("/sys", "sysfs", "sysfs", "nosuid", "noexec", "nodev", "ro"),
			mount("/sys/fs/cgroup", "cgroup", "cgroup", "nosuid", "noexec", "nodev", "ro"),
			mount("/dev/mqueue", "mqueue", "mqueue", "nosuid", "noexec", "nodev"),
			mount("/dev/shm", "tmpfs", "shm", "nosuid", "noexec", "nodev", "mode=1777", "size=65536k"),
		},
		Linux: &oci.Linux{
			CgroupsPath: cgroup,
			Resources:   &oci.LinuxResources{Devices: []oci.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}},
			MaskedPaths: []string{"/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
				"/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware"},
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		},
	}
	for _, kind := range []oci.LinuxNamespaceType{oci.MountNamespace, oci.NetworkNamespace, oci.UTSNamespace, oci.PIDNamespace, oci.IPCNamespace} {
		spec.Linux.Namespaces = append(spec.Linux.Namespaces, oci.LinuxNamespace{Type: kind})
	}
	return spec
}
