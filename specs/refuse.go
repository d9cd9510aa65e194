package specs

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	oci "github.com/opencontainers/runtime-spec/specs-go"

	"nemoclaw/specs/landlock"
	"nemoclaw/specs/policy"
)

// Refuse returns why a container cannot be confined, every reason at once, or
// nil. What it lets through can be.
func Refuse(spec *oci.Spec, p *policy.Policy, host Host) error {
	var faults []error
	fault := func(hint, format string, args ...any) {
		faults = append(faults, &Refusal{Why: fmt.Sprintf(format, args...), Hint: hint})
	}

	switch {
	case host.LandlockABI == 0:
		fault("boot with landlock in the kernel's lsm= list; nemoclaw doctor tells what is missing",
			"landlock: this kernel does not have it or has it turned off")
	case host.LandlockABI < landlock.MinABI && !p.Landlock.BestEffort:
		fault(`write "landlock: { compatibility: best_effort }" into the policy to run with what this kernel has`,
			"landlock: this kernel has ABI %d, the policy needs %d (Linux %s)", host.LandlockABI, landlock.MinABI, landlock.Kernel(landlock.MinABI))
	}
	if host.SELinuxEnforcing {
		fault("setenforce 0, or run this container with another runtime",
			"selinux: it is enforcing, and how it judges the launcher has not been tested")
	}
	if spec.Process == nil || len(spec.Process.Args) == 0 {
		fault("", "spec: process.args names no program")
	}
	if spec.Linux == nil {
		fault("", "spec: it has no linux section")
		return errors.Join(faults...)
	}
	if spec.Root != nil && path.Clean(spec.Root.Path) == "/" {
		fault("", "root: the container's root is the host's, which would be granted as an image is")
	}
	if !slices.ContainsFunc(spec.Linux.Namespaces, func(n oci.LinuxNamespace) bool { return n.Type == oci.NetworkNamespace }) {
		faults = append(faults, HostNetwork)
	}
	if SharesProcesses(spec) && host.LandlockABI < landlock.ScopeABI && !p.Landlock.BestEffort {
		fault("leave out --pid",
			"processes: the container shares a pid namespace, and this kernel (before Linux %s) cannot keep its signals from the others there", landlock.Kernel(landlock.ScopeABI))
	}
	if !slices.ContainsFunc(spec.Mounts, func(m oci.Mount) bool { return m.Type == "proc" && path.Clean(m.Destination) == "/proc" }) {
		fault("add the usual proc mount to the spec", "mounts: there is no proc mount at /proc, so the image could supply the launcher")
	}
	if !slices.ContainsFunc(spec.Linux.Namespaces, func(n oci.LinuxNamespace) bool { return n.Type == oci.MountNamespace && n.Path == "" }) {
		fault("", "mounts: the container has no mount namespace of its own")
	}
	if host.SharesIPC || !slices.ContainsFunc(spec.Linux.Namespaces, func(n oci.LinuxNamespace) bool { return n.Type == oci.IPCNamespace }) {
		fault("leave out --ipc host", "ipc: the container shares the host's, and with it the memory that programs of its user share there")
	}
	for _, m := range spec.Mounts {
		if why := misplaced(m); why != "" {
			fault("", "mounts: %s: %s", m.Destination, why)
		}
	}
	for _, d := range spec.Linux.Devices {
		if at := path.Clean(d.Path); !within(at, "/dev") || within(at, "/dev/shm") || within(at, "/dev/mqueue") {
			fault("leave it in /dev", "devices: %s: to Landlock it would be a file like others there", d.Path)
		} else if why := hazard(d); why != "" && !allDevices(spec) && !slices.Contains(p.Filesystem.AllowDevices, at) {
			fault(fmt.Sprintf("to give it all the same, add to the policy, under filesystem:  allow_devices: [%s]", at), "devices: %s: %s", d.Path, why)
		}
	}
	if spec.Process != nil {
		carves := Carves(p, StaticRules(spec, p, host))
		for _, c := range carves {
			if why := Uncarvable(c, carves, p, spec, Visible(spec, host.Volumes)); why != "" {
				fault("take it out of the policy, or that mount out of the container", "filesystem: %s cannot be kept apart: %s", c, why)
			}
		}
	}
	if spec.Hooks != nil && len(spec.Hooks.StartContainer) > 0 {
		fault("", "hooks: startContainer hooks run inside the container before the layers are on")
	}
	for _, v := range host.Volumes {
		if dir := ours(v, host); dir != "" {
			fault("mount something smaller", "volumes: %s: %s is nemoclaw's own: sockets, audit logs, policies", v.Source, dir)
			continue
		}
		// By what a link leads to: whoever owns it could lead it elsewhere.
		if why := guard(v); why != "" && !slices.Contains(p.Filesystem.AllowVolumes, v.Resolved) && !isAllowedDevice(p, v) {
			fault("to mount it all the same, "+allowLine(p, v), "volumes: %s: %s", v.Source, why)
		}
		if by := ledBy(v, host.Volumes); by != "" {
			fault("mount "+v.Resolved+" itself, if that is meant", "volumes: %s: it leads to %s by a link in %s, which programs may write", v.Source, v.Resolved, by)
		}
		if !v.ReadOnly && host.PolicyFile != "" && within(host.PolicyFile, v.Resolved) {
			fault("mount it read-only, or keep the policy elsewhere", "volumes: %s: the policy file %s lies in it, and the program could rewrite it", v.Source, host.PolicyFile)
		}
	}
	return errors.Join(faults...)
}

// allowLine is what a person would add to the policy for v to be mounted.
func allowLine(p *policy.Policy, v Volume) string {
	key, has := "allow_volumes", len(p.Filesystem.AllowVolumes) > 0
	if v.Kind == Device {
		key, has = "allow_devices", len(p.Filesystem.AllowDevices) > 0
	}
	if has {
		return fmt.Sprintf("add to filesystem.%s in the policy:  - %s", key, v.Resolved)
	}
	return fmt.Sprintf("add to the policy, under filesystem:  %s: [%s]", key, v.Resolved)
}

// SharesProcesses reports whether the container has no pid namespace of its
// own, as with docker run --pid: there it could send signals to strangers.
func SharesProcesses(spec *oci.Spec) bool {
	return !slices.ContainsFunc(spec.Linux.Namespaces, func(n oci.LinuxNamespace) bool { return n.Type == oci.PIDNamespace && n.Path == "" })
}

// SharesNetwork reports whether the container's network namespace is named by a
// path, as those of pods are: others may live in it.
func SharesNetwork(spec *oci.Spec) bool {
	return slices.ContainsFunc(spec.Linux.Namespaces, func(n oci.LinuxNamespace) bool { return n.Type == oci.NetworkNamespace && n.Path != "" })
}

// kernelMounts are the file systems that a container may have besides volumes
// and tmpfs, and below what each belongs: anywhere else its files would be
// granted as if they were the image's.
var kernelMounts = map[string]string{"proc": "/proc", "sysfs": "/sys", "cgroup": "/sys", "cgroup2": "/sys", "devpts": "/dev", "mqueue": "/dev", "tmpfs": "/"}

// misplaced returns why m cannot be judged, or "". A disk or a network file
// system passes by the guard of volumes: whoever wants one binds it.
func misplaced(m oci.Mount) string {
	if isBind(m) {
		return ""
	}
	at, known := kernelMounts[m.Type]
	switch {
	case !known:
		return fmt.Sprintf("a file system of type %q is not a volume that could be judged", m.Type)
	case !within(path.Clean(m.Destination), at), m.Type == "proc" && path.Clean(m.Destination) != at:
		return fmt.Sprintf("%s belongs below %s", m.Type, at)
	}
	return ""
}

// HostNetwork refuses a container that is to live in the host's network: its
// spec names no network namespace, or, as Docker's do, the host's.
var HostNetwork = &Refusal{
	Why:  "network: the container has no network namespace of its own, so nothing could stand between it and the host's",
	Hint: "leave out --network host: the gateway carries what the policy allows",
}

// Refusal is one reason; Hint is what a person could do about it, or empty.
type Refusal struct{ Why, Hint string }

func (r *Refusal) Error() string { return r.Why }

// sensitive are places whose mount would give away the host; a volume that is
// one of them is refused (only the root contains any), and of the trees also what
// lies in them: sockets that appear later, and the kernel's own files, which a program
// with the user id 0 may write without any capability.
var (
	sensitive      = []string{"/", "/etc", "/root", "/home", "/run", "/dev", "/proc", "/sys", "/boot"}
	sensitiveTrees = []string{"/run", "/dev", "/proc", "/sys", "/boot"}
)

// secretNames are directories and files that hold credentials wherever they
// lie: a volume at or below one is refused.
var secretNames = []string{".ssh", ".aws", ".gnupg", ".kube", ".docker", ".azure", ".gcloud", ".password-store", ".netrc", ".git-credentials", ".vault-token", ".pki"}

// engineDirs belong to container engines: images, other containers' files,
// their sockets.
var engineDirs = []string{"/var/lib/docker", "/var/lib/containerd", "/var/lib/containers", "/var/lib/kubelet", "/var/lib/crio", "/var/lib/rancher",
	"/run/containerd", "/run/docker", "/run/containers", "/run/crio", "/run/k3s", "/run/podman", "/run/libpod"}

// handedOut are what engines give to containers out of their directories, as
// patterns of path.Match; a volume at or below a match is the container's own.
var handedOut = []string{
	"/var/lib/docker/volumes/*/_data",
	"/var/lib/docker/*/volumes/*/_data", // userns-remap
	"/var/lib/docker/containers/*/resolv.conf", "/var/lib/docker/containers/*/hosts", "/var/lib/docker/containers/*/hostname", "/var/lib/docker/containers/*/mounts",
	"/var/lib/docker/*/containers/*/resolv.conf", "/var/lib/docker/*/containers/*/hosts", "/var/lib/docker/*/containers/*/hostname", "/var/lib/docker/*/containers/*/mounts",
	"/var/lib/kubelet/pods/*/volumes", "/var/lib/kubelet/pods/*/volume-subpaths", "/var/lib/kubelet/pods/*/etc-hosts", "/var/lib/kubelet/pods/*/containers",
	"/var/lib/containerd/io.containerd.grpc.v1.cri/sandboxes/*", "/run/containerd/io.containerd.grpc.v1.cri/sandboxes/*",
	"/var/lib/rancher/*/agent/containerd/io.containerd.grpc.v1.cri/sandboxes/*", "/run/k3s/containerd/io.containerd.grpc.v1.cri/sandboxes/*",
	"/var/lib/containers/storage/volumes/*/_data", "/var/lib/containers/storage/overlay-containers/*", "/run/containers/storage/overlay-containers/*",
}

// ours returns the directory of nemoclaw's that v would bring into reach, which
// no policy can allow, or "".
func ours(v Volume, host Host) string {
	for _, dir := range append([]string{host.RunDir, host.LogDir}, host.ConfigDirs...) {
		if within(dir, v.Resolved) || within(v.Resolved, dir) {
			return dir
		}
	}
	return ""
}

// ledBy returns the source of a writable volume in which a symbolic link lies by
// which v leads elsewhere, or "": whoever was in a container before could have
// put it there, and would choose what of the host is mounted this time.
func ledBy(v Volume, volumes []Volume) string {
	for _, w := range volumes {
		for _, dir := range []string{w.Source, w.Resolved} {
			if !w.ReadOnly && w.Kind == Directory && v.Source != dir && within(v.Source, dir) && v.Resolved != path.Join(w.Resolved, strings.TrimPrefix(v.Source, dir)) {
				return w.Source
			}
		}
	}
	return ""
}

// guard returns why v must not be mounted unless the policy names it, or "".
func guard(v Volume) string {
	at := v.Resolved
	switch v.Kind {
	case Socket:
		return "it is a socket, and whoever listens there acts for the host"
	case Device:
		return "it is a device"
	}
	if slices.Contains(sensitive, at) {
		return "it holds the host's own files"
	}
	for _, s := range sensitiveTrees {
		if within(at, s) && !isHandedOut(at) {
			return "it lies in " + s
		}
	}
	if path.Dir(at) == "/home" {
		return "it is a home directory"
	}
	for _, name := range strings.Split(at, "/") {
		if slices.Contains(secretNames, name) {
			return name + " holds credentials"
		}
	}
	for _, dir := range engineDirs {
		if (within(at, dir) || within(dir, at)) && !isHandedOut(at) {
			return dir + " belongs to a container engine"
		}
	}
	if len(v.Sockets) > 0 {
		return fmt.Sprintf("a program of the host listens at %s, and Landlock before ABI 9 does not stop a connection to it", v.Sockets[0])
	}
	return ""
}

// FromEngine reports whether a mount's source is a file or directory that an
// engine made for the container itself, and makes anew whenever it starts.
func FromEngine(source string) bool { return isHandedOut(source) }

func isHandedOut(at string) bool {
	for p := at; p != "/" && p != "."; p = path.Dir(p) {
		for _, pattern := range handedOut {
			if ok, _ := path.Match(pattern, p); ok {
				return true
			}
		}
	}
	return false
}

// within reports whether p is dir or lies below it; both are clean.
func within(p, dir string) bool {
	if p == "" || dir == "" {
		return false
	}
	return p == dir || dir == "/" || strings.HasPrefix(p, dir+"/")
}
