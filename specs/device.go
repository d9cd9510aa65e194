package specs

import (
	"fmt"
	"path"
	"slices"
	"strings"

	oci "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"nemoclaw/specs/landlock"
	"nemoclaw/specs/policy"
)

// graphics are the nodes of graphics processors and their kin, as patterns of
// path.Match: what engines and CDI give a container that is to compute. Their
// drivers are a large part of a kernel; a policy cannot see into them.
var graphics = []string{
	"/dev/nvidia[0-9]*", "/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia-modeset", "/dev/nvidia-caps/*", "/dev/nvidia-caps-imex-channels/*",
	"/dev/dri/card[0-9]*", "/dev/dri/renderD[0-9]*", "/dev/kfd", "/dev/dxg", "/dev/accel/accel[0-9]*", "/dev/davinci[0-9]*", "/dev/habanalabs/*",
}

func isGraphics(name string) bool {
	return slices.ContainsFunc(graphics, func(pattern string) bool {
		ok, _ := path.Match(pattern, name)
		return ok
	})
}

// hazards are character devices that give away the host, by number
// (Documentation/admin-guide/devices.txt of the kernel); minor -1 means all.
var hazards = []struct {
	major, minor int64
	why          string
}{
	{1, 1, "it is the machine's memory"},
	{1, 2, "it is the kernel's memory"},
	{1, 4, "it is the machine's input and output ports"},
	{1, 11, "it is the kernel's log, of all programs of the machine"},
	{4, -1, "it is a terminal of the machine, or a serial line"},
	{5, 1, "it is the machine's console"},
	{7, -1, "it shows what stands on the machine's consoles"},
	{10, 130, "it restarts the machine"},
	{10, 144, "it is the firmware's memory"},
	{10, 196, "it gives a device of the machine, and its access to all memory, to a program"},
	{10, 200, "it makes network interfaces"},
	{10, 203, "it makes devices of its own kind"},
	{10, 223, "it types and clicks for whoever sits at the machine"},
	{10, 229, "a file system that the program serves itself makes the kernel wait for it, and mounting needs privileges that are never held"},
	{10, 231, "it writes an image of all memory"},
	{10, 232, "it makes virtual machines, in a part of the kernel that Landlock and seccomp do not see into"},
	{10, 234, "it controls file systems of the machine"},
	{10, 235, "it mounts file systems"},
	{10, 236, "it controls disks of the machine"},
	{10, 237, "it makes disks of files"},
	{10, 238, "it is a network of virtual machines, past the gateway"},
	{10, 241, "it is a network of virtual machines, past the gateway"},
	{10, 242, "it turns the machine's radios off"},
	{13, -1, "it is the keyboard, or the mouse, of the machine"},
	{21, -1, "it is a disk, asked in its own language"},
	{108, -1, "it makes network interfaces"},
	{202, -1, "it is the registers of a processor"},
}

// byName are hazards whose numbers the kernel gives out as it likes.
var byName = map[string]string{
	"/dev/vfio": "it gives a device of the machine, and its access to all memory, to a program",
	"/dev/uio":  "it gives a device of the machine to a program",
	"/dev/mei":  "it is the processor's management engine",
	"/dev/tpm":  "it holds the machine's own keys",
	"/dev/ipmi": "it controls the machine from below",
	"/dev/bsg":  "it is a disk, asked in its own language",
	"/dev/nvme": "it is a disk, asked in its own language",
	"/dev/fb":   "it shows what stands on the machine's screen",
	"/dev/hidr": "it is the keyboard, or the mouse, of the machine",
}

// hazard returns why d gives away the host, or "".
func hazard(d oci.LinuxDevice) string {
	switch d.Type {
	case "c", "u":
	case "p":
		return ""
	default:
		return "it is a disk, and what lies on it has no owner and no mode there"
	}
	if why := hazardous(d.Major, d.Minor); why != "" {
		return why // whatever it is called in the container
	}
	if isGraphics(path.Clean(d.Path)) {
		return ""
	}
	for name, why := range byName {
		if strings.HasPrefix(path.Clean(d.Path), name) {
			return why
		}
	}
	return ""
}

// hazardous returns why one of the character devices of major and minor, where a
// negative one means all, gives away the host, or "".
func hazardous(major, minor int64) string {
	for _, h := range hazards {
		if major == h.major && (minor == h.minor || minor < 0 || h.minor < 0) {
			return h.why
		}
	}
	return ""
}

// number is the major or minor number of a cgroup's rule, -1 for all.
func number(n *int64) int64 {
	if n == nil || *n < 0 {
		return -1
	}
	return *n
}

// opens reports whether a cgroup's rule lets devices be read or written. One of
// the kind "a" lets all, whatever else it says: so libcontainer reads it.
func opens(d oci.LinuxDeviceCgroup) bool {
	return d.Allow && (strings.ContainsAny(d.Access, "rw") || ofAll(d))
}

func ofAll(d oci.LinuxDeviceCgroup) bool { return d.Type == "" || d.Type == "a" }

// isOpen reports whether the container's cgroup lets d be used, as far as its
// spec says.
func isOpen(spec *oci.Spec, d oci.LinuxDevice) bool {
	return spec.Linux.Resources == nil || slices.ContainsFunc(spec.Linux.Resources.Devices, func(r oci.LinuxDeviceCgroup) bool {
		major, minor := number(r.Major), number(r.Minor)
		return opens(r) && r.Type == d.Type && (major < 0 || major == d.Major) && (minor < 0 || minor == d.Minor)
	})
}

// allDevices reports whether spec allows every device there is, as --privileged
// does: then none of them was chosen, and only graphics processors are granted,
// and what each container has.
func allDevices(spec *oci.Spec) bool {
	return spec.Linux.Resources != nil && slices.ContainsFunc(spec.Linux.Resources.Devices, func(d oci.LinuxDeviceCgroup) bool {
		return opens(d) && (ofAll(d) || number(d.Major) < 0)
	})
}

// isGranted reports whether d, which the spec carries, may be used.
func isGranted(spec *oci.Spec, p *policy.Policy, d oci.LinuxDevice) bool {
	name := path.Clean(d.Path)
	switch {
	case slices.Contains(p.Filesystem.AllowDevices, name):
		return true
	case hazard(d) != "":
		return false
	}
	return isGraphics(name) || !allDevices(spec) && isOpen(spec, d)
}

// devices grants the device nodes that the spec carries: libcontainer makes
// them, and the program may use them as the engine's device cgroup lets it.
func devices(spec *oci.Spec, p *policy.Policy) []landlock.Rule {
	var rules []landlock.Rule
	for _, d := range spec.Linux.Devices {
		name := path.Clean(d.Path)
		if !within(name, "/dev") || slices.ContainsFunc(p.Filesystem.ReadWrite, func(f policy.Path) bool { return f.Name == name }) || !isGranted(spec, p, d) {
			continue
		}
		rules = append(rules, landlock.Rule{Path: name, Access: landlock.Device, Rdev: unix.Mkdev(uint32(d.Major), uint32(d.Minor)), Why: "device"})
	}
	return rules
}

// isAllowedDevice reports whether v is a node that may be mounted: a graphics
// processor's, or one that the policy names.
func isAllowedDevice(p *policy.Policy, v Volume) bool {
	return v.Kind == Device && within(v.Destination, "/dev") && (isGraphics(v.Resolved) || slices.Contains(p.Filesystem.AllowDevices, v.Resolved))
}

// cutDevices lets the container's cgroup allow what is granted, and nothing else
// that gives away the host. To Landlock a device node is a file like others: an
// image, or a volume, may bring its own where files may be read. The nodes that
// the engine makes stay in the container: engines look at them.
func cutDevices(spec *oci.Spec, p *policy.Policy, host Host) []Edit {
	if spec.Linux.Resources == nil {
		return nil // then libcontainer allows what every container has
	}
	granted := grantedNumbers(spec, p, host)
	var rules []oci.LinuxDeviceCgroup
	for _, d := range spec.Linux.Resources.Devices {
		major, minor := number(d.Major), number(d.Minor)
		same := func(g oci.LinuxDeviceCgroup) bool {
			return g.Type == d.Type && *g.Major == major && *g.Minor == minor
		}
		switch {
		case !opens(d):
			rules = append(rules, d)
		case ofAll(d), major < 0:
			rules = append(rules, granted...)
		case d.Type == "c" && hazardous(major, minor) == "", slices.ContainsFunc(granted, same):
			rules = append(rules, d)
		}
	}
	cut := func(s *oci.Spec) {
		resources := *s.Linux.Resources
		resources.Devices = rules
		s.Linux.Resources = &resources
	}
	if !allDevices(spec) {
		return []Edit{{apply: cut}}
	}
	return []Edit{{fmt.Sprintf("devices: of all %d none is granted but graphics processors, what each container has and what the policy names", len(spec.Linux.Devices)), cut}}
}

// everyones are the devices that each container has, whether or not its engine
// lists them: null, zero, full, random, urandom, and terminals.
var everyones = [][2]int64{{1, 3}, {1, 5}, {1, 7}, {1, 8}, {1, 9}, {5, 0}, {5, 2}, {136, -1}}

// grantedNumbers are rules of a cgroup for the devices that may be used: each
// container's, those of the spec, and nodes of the host's that are mounted.
func grantedNumbers(spec *oci.Spec, p *policy.Policy, host Host) []oci.LinuxDeviceCgroup {
	var rules []oci.LinuxDeviceCgroup
	add := func(kind string, major, minor int64) {
		if kind == "u" {
			kind = "c" // mknod(1): the same
		}
		rules = append(rules, oci.LinuxDeviceCgroup{Allow: true, Type: kind, Major: &major, Minor: &minor, Access: "rwm"})
	}
	for _, n := range everyones {
		add("c", n[0], n[1])
	}
	for _, d := range spec.Linux.Devices {
		if d.Type != "p" && isGranted(spec, p, d) {
			add(d.Type, d.Major, d.Minor)
		}
	}
	for _, v := range host.Volumes {
		if isAllowedDevice(p, v) {
			kind := "c"
			if v.Block {
				kind = "b"
			}
			add(kind, int64(unix.Major(v.Rdev)), int64(unix.Minor(v.Rdev)))
		}
	}
	return rules
}
