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
	if isGraphics(path.Clean(d.Path)) && d.Major != 1 && d.Major != 10 {
		return ""
	}
	for _, h := range hazards {
		if d.Major == h.major && (d.Minor == h.minor || h.minor < 0) {
			return h.why
		}
	}
	for name, why := range byName {
		if strings.HasPrefix(path.Clean(d.Path), name) {
			return why
		}
	}
	return ""
}

// allDevices reports whether spec allows every device there is, as --privileged
// does: then none of them was chosen, and only graphics processors are granted.
func allDevices(spec *oci.Spec) bool {
	return spec.Linux.Resources != nil && slices.ContainsFunc(spec.Linux.Resources.Devices, func(d oci.LinuxDeviceCgroup) bool {
		return d.Allow && (d.Type == "" || d.Type == "a") && d.Major == nil && d.Minor == nil && strings.Contains(d.Access, "rw")
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
	return isGraphics(name) || !allDevices(spec)
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

// leaveDevices says what is not granted of the devices that the spec carries
// because nobody chose them. They stay in the container: engines look at them.
func leaveDevices(spec *oci.Spec) []Edit {
	if n := len(spec.Linux.Devices); n > 0 && allDevices(spec) {
		return []Edit{{Does: fmt.Sprintf("devices: of all %d none is granted but graphics processors and what the policy names", n)}}
	}
	return nil
}
