package specs

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	oci "github.com/opencontainers/runtime-spec/specs-go"

	"nemoclaw/specs/policy"
)

// The lists of this package, written out again by hand: what stands here is
// promised, and make mutate sees to it that no entry of theirs could go unseen.

// usual is a spec that can be confined.
func usual() *oci.Spec {
	return &oci.Spec{
		Process: &oci.Process{Args: []string{"sh"}, Cwd: "/"},
		Root:    &oci.Root{Path: "rootfs"},
		Mounts:  []oci.Mount{{Destination: "/proc", Type: "proc", Source: "proc"}},
		Linux:   &oci.Linux{Namespaces: []oci.LinuxNamespace{{Type: oci.NetworkNamespace}, {Type: oci.MountNamespace}, {Type: oci.PIDNamespace}, {Type: oci.IPCNamespace}}},
	}
}

func usualHost() Host {
	return Host{LandlockABI: 7, RunDir: "/run/nemoclaw", LogDir: "/var/log/nemoclaw", ConfigDirs: []string{"/etc/nemoclaw"}}
}

// refusals are the reasons of Refuse, each alone.
func refusals(spec *oci.Spec, p *policy.Policy, host Host) []string {
	err := Refuse(spec, p, host)
	if err == nil {
		return nil
	}
	var why []string
	for _, e := range err.(interface{ Unwrap() []error }).Unwrap() {
		r, _ := errors.AsType[*Refusal](e)
		why = append(why, r.Why)
	}
	return why
}

// Each thing that is wrong is refused for itself, and nothing else is said.
func TestRefuse(t *testing.T) {
	drop := func(kind oci.LinuxNamespaceType) func(*oci.Spec, *Host) {
		return func(s *oci.Spec, _ *Host) {
			s.Linux.Namespaces = slices.DeleteFunc(s.Linux.Namespaces, func(n oci.LinuxNamespace) bool { return n.Type == kind })
		}
	}
	mount := func(m oci.Mount) func(*oci.Spec, *Host) {
		return func(s *oci.Spec, _ *Host) { s.Mounts = append(s.Mounts, m) }
	}
	volume := func(v Volume) func(*oci.Spec, *Host) {
		return func(s *oci.Spec, h *Host) {
			v.Source, v.Destination = v.Resolved, "/data"
			s.Mounts = append(s.Mounts, oci.Mount{Destination: v.Destination, Type: "bind", Source: v.Source})
			h.Volumes, h.PolicyFile = append(h.Volumes, v), "/srv/policies/policy.yaml"
		}
	}
	for _, test := range []struct {
		name  string
		spoil func(*oci.Spec, *Host)
		why   string // what the one reason holds; empty: none
	}{
		{"nothing", func(*oci.Spec, *Host) {}, ""},
		{"a kernel without Landlock", func(_ *oci.Spec, h *Host) { h.LandlockABI = 0 }, "landlock: this kernel does not have it"},
		{"an old kernel", func(_ *oci.Spec, h *Host) { h.LandlockABI = 2 }, "landlock: this kernel has ABI 2, the policy needs 3"},
		{"SELinux", func(_ *oci.Spec, h *Host) { h.SELinuxEnforcing = true }, "selinux: it is enforcing"},
		{"no program", func(s *oci.Spec, _ *Host) { s.Process.Args = nil }, "process.args names no program"},
		{"no linux section", func(s *oci.Spec, _ *Host) { s.Linux = nil }, "no linux section"},
		{"the host's root", func(s *oci.Spec, _ *Host) { s.Root.Path = "//" }, "root: the container's root is the host's"},
		{"the host's network", drop(oci.NetworkNamespace), "network: the container has no network namespace"},
		{"the host's processes, on an old kernel", func(s *oci.Spec, h *Host) { drop(oci.PIDNamespace)(s, h); h.LandlockABI = 5 }, "processes: the container shares a pid namespace"},
		{"the host's processes, whose signals Landlock keeps apart", drop(oci.PIDNamespace), ""},
		{"no /proc", func(s *oci.Spec, _ *Host) { s.Mounts = nil }, "there is no proc mount at /proc"},
		{"the host's mounts", drop(oci.MountNamespace), "mounts: the container has no mount namespace"},
		{"somebody's mounts", func(s *oci.Spec, h *Host) {
			drop(oci.MountNamespace)(s, h)
			s.Linux.Namespaces = append(s.Linux.Namespaces, oci.LinuxNamespace{Type: oci.MountNamespace, Path: "/proc/1/ns/mnt"})
		}, "mounts: the container has no mount namespace"},
		{"the host's memory", drop(oci.IPCNamespace), "ipc: the container shares the host's"},
		{"the host's memory by a path", func(_ *oci.Spec, h *Host) { h.SharesIPC = true }, "ipc: the container shares the host's"},
		{"a disk", mount(oci.Mount{Destination: "/data", Type: "ext4", Source: "/dev/sda1"}), `a file system of type "ext4"`},
		{"another proc", mount(oci.Mount{Destination: "/app/proc", Type: "proc"}), "proc belongs below /proc"},
		{"another proc below proc", mount(oci.Mount{Destination: "/proc/x", Type: "proc"}), "proc belongs below /proc"},
		{"another sysfs", mount(oci.Mount{Destination: "/app/sys", Type: "sysfs"}), "sysfs belongs below /sys"},
		{"another cgroup", mount(oci.Mount{Destination: "/app/cg", Type: "cgroup"}), "cgroup belongs below /sys"},
		{"another cgroup2", mount(oci.Mount{Destination: "/app/cg", Type: "cgroup2"}), "cgroup2 belongs below /sys"},
		{"another devpts", mount(oci.Mount{Destination: "/app/pts", Type: "devpts"}), "devpts belongs below /dev"},
		{"another mqueue", mount(oci.Mount{Destination: "/app/mq", Type: "mqueue"}), "mqueue belongs below /dev"},
		{"sysfs", mount(oci.Mount{Destination: "/sys", Type: "sysfs"}), ""},
		{"cgroups", mount(oci.Mount{Destination: "/sys/fs/cgroup", Type: "cgroup2"}), ""},
		{"a tmpfs anywhere", mount(oci.Mount{Destination: "/app/tmp", Type: "tmpfs"}), ""},
		{"a device among files", func(s *oci.Spec, _ *Host) {
			s.Linux.Devices = []oci.LinuxDevice{{Path: "/dev/shm/x", Type: "c", Major: 1, Minor: 3}}
		}, "to Landlock it would be a file like others"},
		{"a hook inside", func(s *oci.Spec, _ *Host) { s.Hooks = &oci.Hooks{StartContainer: []oci.Hook{{Path: "/x"}}} }, "startContainer hooks run inside"},
		{"our sockets", volume(Volume{Resolved: "/run/nemoclaw/web", Kind: Directory}), "/run/nemoclaw is nemoclaw's own"},
		{"our logs", volume(Volume{Resolved: "/var/log", Kind: Directory}), "/var/log/nemoclaw is nemoclaw's own"},
		{"our settings", volume(Volume{Resolved: "/etc/nemoclaw/policies", Kind: Directory}), "/etc/nemoclaw is nemoclaw's own"},
		{"the policy", volume(Volume{Resolved: "/srv/policies", Kind: Directory}), "the policy file /srv/policies/policy.yaml lies in it"},
		{"the policy, read-only", volume(Volume{Resolved: "/srv/policies", Kind: Directory, ReadOnly: true}), ""},
		{"a project", volume(Volume{Resolved: "/srv/project", Kind: Directory}), ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			spec, host := usual(), usualHost()
			test.spoil(spec, &host)
			why := refusals(spec, policy.Default(), host)
			if test.why == "" && len(why) > 0 || test.why != "" && (len(why) != 1 || !strings.Contains(why[0], test.why)) {
				t.Errorf("refused for %q, want %q", why, test.why)
			}
		})
	}
}

// What a volume may not be, and the reason that is given.
func TestGuard(t *testing.T) {
	for _, test := range []struct {
		reason string
		paths  string
	}{
		{"it holds the host's own files", "/ /etc /root /home /run /dev /proc /sys /boot"},
		{"it lies in", "/run/user/0 /dev/shm /proc/sys /sys/fs/bpf /boot/efi"},
		{"it is a home directory", "/home/alice"},
		{"holds credentials", `/srv/a/.ssh /srv/a/.aws /srv/a/.gnupg /srv/a/.kube /srv/a/.docker /srv/a/.azure /srv/a/.gcloud /srv/a/.password-store
			/srv/a/.netrc /srv/a/.git-credentials /srv/a/.vault-token /srv/a/.pki /srv/a/.ssh/keys/old`},
		{"belongs to a container engine", `/var/lib/docker /var/lib/docker/overlay2 /var/lib/containerd/x /var/lib/containers/storage /var/lib/kubelet/pods /var/lib/crio/x
			/var/lib/rancher/k3s /var/lib`},
		{"", "/srv/project /home/alice/project /root/project /var/lib/postgres /srv/sshd /opt/x /etc/ssl/certs /usr/share/zoneinfo /tmp"},
	} {
		for _, at := range strings.Fields(test.paths) {
			why := guard(Volume{Resolved: at, Kind: Directory})
			if (test.reason == "") != (why == "") || !strings.Contains(why, test.reason) {
				t.Errorf("%s: refused because %q, want %q", at, why, test.reason)
			}
		}
	}
	for _, test := range []struct {
		volume Volume
		reason string
	}{
		{Volume{Resolved: "/srv/x.sock", Kind: Socket}, "it is a socket"},
		{Volume{Resolved: "/srv/disk", Kind: Device}, "it is a device"},
		{Volume{Resolved: "/srv/mysql", Kind: Directory, Sockets: []string{"/srv/mysql/s"}}, "a program of the host listens at /srv/mysql/s"},
	} {
		if why := guard(test.volume); !strings.Contains(why, test.reason) {
			t.Errorf("%+v: refused because %q, want %q", test.volume, why, test.reason)
		}
	}
}

// What container engines own, and what of it they give to containers.
func TestEngineDirectories(t *testing.T) {
	for _, dir := range strings.Fields(`/var/lib/docker /var/lib/containerd /var/lib/containers /var/lib/kubelet /var/lib/crio /var/lib/rancher
		/run/containerd /run/docker /run/containers /run/crio /run/k3s /run/podman /run/libpod`) {
		if !slices.Contains(engineDirs, dir) {
			t.Errorf("%s is not an engine's", dir)
		}
	}
	for _, at := range strings.Fields(`
		/var/lib/docker/volumes/v/_data /var/lib/docker/1000.1000/volumes/v/_data
		/var/lib/docker/containers/c/resolv.conf /var/lib/docker/containers/c/hosts /var/lib/docker/containers/c/hostname /var/lib/docker/containers/c/mounts/shm
		/var/lib/docker/1000.1000/containers/c/resolv.conf /var/lib/docker/1000.1000/containers/c/hosts /var/lib/docker/1000.1000/containers/c/hostname
		/var/lib/docker/1000.1000/containers/c/mounts/shm
		/var/lib/kubelet/pods/p/volumes/x /var/lib/kubelet/pods/p/volume-subpaths/x /var/lib/kubelet/pods/p/etc-hosts /var/lib/kubelet/pods/p/containers/c
		/var/lib/containerd/io.containerd.grpc.v1.cri/sandboxes/s/hostname /run/containerd/io.containerd.grpc.v1.cri/sandboxes/s/shm
		/var/lib/rancher/k3s/agent/containerd/io.containerd.grpc.v1.cri/sandboxes/s/hosts /run/k3s/containerd/io.containerd.grpc.v1.cri/sandboxes/s/shm
		/var/lib/containers/storage/volumes/v/_data /var/lib/containers/storage/overlay-containers/c/userdata/hosts /run/containers/storage/overlay-containers/c/userdata/hosts`) {
		if why := guard(Volume{Resolved: at, Kind: Directory}); why != "" {
			t.Errorf("%s, which an engine hands out, is refused: %s", at, why)
		}
	}
	for _, at := range strings.Fields("/var/lib/docker/volumes/v /var/lib/docker/containers/c /var/lib/kubelet/pods/p /run/containers/storage") {
		if guard(Volume{Resolved: at, Kind: Directory}) == "" {
			t.Errorf("%s, which is the engine's, passes", at)
		}
	}
}

// Directories that are not made writable because a program is started in them.
func TestSystemDirectories(t *testing.T) {
	itself := strings.Fields("/ /home /media /mnt /opt /root /srv /usr /usr/local /usr/src /var /var/lib /var/log")
	below := strings.Fields(`/bin /boot /dev /etc /lib /lib32 /lib64 /libx32 /proc /run /sbin /sys /usr/bin /usr/include /usr/lib /usr/lib32 /usr/lib64
		/usr/libexec /usr/sbin /usr/share /usr/local/bin /usr/local/lib /usr/local/sbin /var/lib/dpkg /var/lib/rpm /var/run /nix`)
	for _, dir := range itself {
		if !isSystemDir(dir) || isSystemDir(strings.TrimSuffix(dir, "/")+"/project") {
			t.Errorf("%s: itself %v, below %v; want true, false", dir, isSystemDir(dir), isSystemDir(dir+"/project"))
		}
	}
	for _, dir := range below {
		if !isSystemDir(dir) || !isSystemDir(dir+"/deep/down") {
			t.Errorf("%s: itself %v, below %v; want true, true", dir, isSystemDir(dir), isSystemDir(dir+"/deep/down"))
		}
	}
}

// What of an image is out of reach unless the policy lists it, and what of an
// engine's files can be read and not written.
func TestImageAndEngineFiles(t *testing.T) {
	names := strings.Fields("root home proc sys dev tmp run mnt media boot")
	spec := usual()
	for _, r := range ImageRules(spec, policy.Default(), Image{TopLevel: append(names, "app"), Program: "/app/x"}) {
		if r.Path != "/app" {
			t.Errorf("%s is granted as part of the image", r.Path)
		}
	}
	host := usualHost()
	for _, name := range strings.Fields("/etc/resolv.conf /etc/hosts /etc/hostname") {
		spec.Mounts = append(spec.Mounts, oci.Mount{Destination: name, Type: "bind", Source: "/srv" + name})
		host.Volumes = append(host.Volumes, Volume{Source: "/srv" + name, Resolved: "/srv" + name, Destination: name, Kind: File})
	}
	found := 0
	for _, r := range StaticRules(spec, policy.Default(), host) {
		if strings.HasPrefix(r.Why, "volume") {
			if found++; r.Access.String() != "read_only" {
				t.Errorf("%s may be written", r.Path)
			}
		}
	}
	if found != 3 {
		t.Errorf("%d of the engine's three files are granted", found)
	}
}

// The capabilities that a sandbox may hold, and those that are above it.
func TestCeiling(t *testing.T) {
	want := strings.Fields("AUDIT_WRITE CHOWN DAC_OVERRIDE FOWNER FSETID KILL NET_BIND_SERVICE SETFCAP SETGID SETPCAP SETUID")
	spec := usual()
	var all []string
	for _, name := range slices.Concat(want, strings.Fields("SYS_ADMIN NET_ADMIN NET_RAW MKNOD SYS_CHROOT SYS_PTRACE SYS_MODULE BPF PERFMON DAC_READ_SEARCH")) {
		all = append(all, "CAP_"+name)
	}
	spec.Process.Capabilities = &oci.LinuxCapabilities{Bounding: all, Effective: all, Permitted: all, Inheritable: all, Ambient: all}
	edits, _, err := Confine(spec, policy.Default(), usualHost())
	if err != nil {
		t.Fatal(err)
	}
	Apply(spec, edits)
	c := spec.Process.Capabilities
	for i, set := range [][]string{c.Bounding, c.Effective, c.Permitted, c.Inheritable, c.Ambient} {
		if got := strings.ReplaceAll(strings.Join(set, " "), "CAP_", ""); got != strings.Join(want, " ") {
			t.Errorf("set %d is %s, want %s", i, got, want)
		}
	}
}

// The kernel's files that are hidden, and those that cannot be written, also in
// a container that was to be privileged.
func TestKernelFiles(t *testing.T) {
	spec := usual()
	edits, _, err := Confine(spec, policy.Default(), usualHost())
	if err != nil {
		t.Fatal(err)
	}
	Apply(spec, edits)
	masked := "[/proc/acpi /proc/asound /proc/interrupts /proc/kcore /proc/keys /proc/kpagecgroup /proc/kpagecount /proc/kpageflags /proc/latency_stats /proc/sched_debug /proc/scsi /proc/timer_list /proc/timer_stats /sys/devices/virtual/powercap /sys/firmware]"
	readonly := "[/proc/bus /proc/fs /proc/irq /proc/sys /proc/sysrq-trigger]"
	if got := fmt.Sprint(spec.Linux.MaskedPaths); got != masked {
		t.Errorf("hidden: %s\n  want: %s", got, masked)
	}
	if got := fmt.Sprint(spec.Linux.ReadonlyPaths); got != readonly {
		t.Errorf("read-only: %s\n     want: %s", got, readonly)
	}
}

// Devices that give away the host, by number and by name, and those of graphics
// processors, which engines hand out to be computed on.
func TestDeviceLists(t *testing.T) {
	for _, number := range strings.Fields(`1:1 1:2 1:4 1:11 4:0 4:64 5:1 7:0 7:128 10:130 10:144 10:196 10:200 10:203 10:223 10:229 10:231 10:232
		10:234 10:235 10:236 10:237 10:238 10:241 10:242 13:0 13:63 21:0 108:0 202:0`) {
		d := oci.LinuxDevice{Path: "/dev/x", Type: "c"}
		if _, err := fmt.Sscanf(number, "%d:%d", &d.Major, &d.Minor); err != nil {
			t.Fatal(err)
		}
		if hazard(d) == "" {
			t.Errorf("device %s is harmless", number)
		}
	}
	for _, d := range []oci.LinuxDevice{{Path: "/dev/nvidia0", Type: "c", Major: 4}, {Path: "/dev/dri/card0", Type: "c", Major: 202}, {Path: "/dev/kfd", Type: "c", Major: 10, Minor: 232}} {
		if hazard(d) == "" {
			t.Errorf("%+v is harmless for what it is called", d)
		}
	}
	for _, name := range strings.Fields("/dev/vfio/1 /dev/uio0 /dev/mei0 /dev/tpm0 /dev/tpmrm0 /dev/ipmi0 /dev/bsg/0 /dev/nvme0 /dev/fb0 /dev/hidraw0") {
		if hazard(oci.LinuxDevice{Path: name, Type: "c", Major: 240}) == "" {
			t.Errorf("%s is harmless", name)
		}
	}
	for _, name := range strings.Fields(`/dev/nvidia0 /dev/nvidiactl /dev/nvidia-uvm /dev/nvidia-uvm-tools /dev/nvidia-modeset /dev/nvidia-caps/nvidia-cap1
		/dev/nvidia-caps-imex-channels/channel0 /dev/dri/card0 /dev/dri/renderD128 /dev/kfd /dev/dxg /dev/accel/accel0 /dev/davinci0 /dev/habanalabs/hl0`) {
		if !isGraphics(name) {
			t.Errorf("%s is no graphics processor", name)
		}
	}
	for _, name := range strings.Fields("/dev/nvidiax /dev/dri /dev/dri/x /dev/sda /dev/kvm /dev/nvidia-caps/a/b") {
		if isGraphics(name) {
			t.Errorf("%s is a graphics processor", name)
		}
	}
	for _, d := range []oci.LinuxDevice{{Path: "/dev/null", Type: "c", Major: 1, Minor: 3}, {Path: "/dev/x", Type: "p"}, {Path: "/dev/x", Type: "c", Major: 10, Minor: 1}} {
		if why := hazard(d); why != "" {
			t.Errorf("%+v: %s", d, why)
		}
	}
	if hazard(oci.LinuxDevice{Path: "/dev/x", Type: "b", Major: 8}) == "" {
		t.Error("a disk is harmless")
	}
}
