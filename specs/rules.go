package specs

import (
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"

	oci "github.com/opencontainers/runtime-spec/specs-go"

	"nemoclaw/specs/landlock"
	"nemoclaw/specs/policy"
)

// sandboxDir is the directory that every sandbox may write unless its policy
// lists others, and its HOME.
const sandboxDir = "/sandbox"

// Rules returns everything that a container is granted, once its image is known.
func Rules(spec *oci.Spec, p *policy.Policy, host Host, image Image) []landlock.Rule {
	rules := append(StaticRules(spec, p, host), ImageRules(spec, p, image)...)
	return withoutExecute(p, SpareVolumes(p, image, rules))
}

// withoutExecute takes the right to execute out of every rule about a place
// from which nothing is to be executed. What a rule higher up grants of it, its
// mount takes away (Carves).
func withoutExecute(p *policy.Policy, rules []landlock.Rule) []landlock.Rule {
	var places []string
	for _, f := range slices.Concat(p.Filesystem.ReadOnly, p.Filesystem.ReadWrite) {
		if f.NoExec {
			places = append(places, f.Name)
		}
	}
	if !p.Filesystem.WriteExecute {
		for _, r := range rules {
			if isWritable(r) {
				places = append(places, r.Path)
			}
		}
	}
	for i, r := range rules {
		if slices.ContainsFunc(places, func(place string) bool { return within(r.Path, place) }) {
			rules[i].Access &^= landlock.Execute
		}
	}
	return rules
}

// isWritable reports whether r lets a program write files of its own making, as
// device nodes are not.
func isWritable(r landlock.Rule) bool {
	return r.Access&landlock.WriteFile != 0 && (!within(r.Path, "/dev") || writeAccess(r.Path) == landlock.ReadWrite)
}

// denied reports whether the policy hides name.
func denied(p *policy.Policy, name string) bool {
	return slices.ContainsFunc(p.Filesystem.Deny, func(f policy.Path) bool { return within(name, f.Name) })
}

// StaticRules returns the rules that follow from the policy and the spec: the
// lists, the working directory, the devices, the volumes.
func StaticRules(spec *oci.Spec, p *policy.Policy, host Host) []landlock.Rule {
	var rules []landlock.Rule
	for _, f := range p.Filesystem.ReadOnly {
		rules = append(rules, listed(p, f, landlock.ReadOnly))
	}
	for _, f := range p.Filesystem.ReadWrite {
		rules = append(rules, listed(p, f, writeAccess(f.Name)))
	}
	if dir := path.Clean(spec.Process.Cwd); p.Filesystem.IncludeWorkdir && !isSystemDir(dir) && !listedReadOnly(p, dir) {
		rules = append(rules, landlock.Rule{Path: dir, Access: landlock.ReadWrite, Implied: true, Why: "working directory"})
	}
	rules = append(rules, devices(spec, p)...)
	if p.Filesystem.Volumes == policy.VolumesFollow {
		rules = append(rules, volumes(spec, p, host)...)
	}
	rules = slices.DeleteFunc(rules, func(r landlock.Rule) bool { return denied(p, r.Path) })
	for _, f := range p.Filesystem.ReadOnly {
		if f.Dir && WritableAbove(f.Name, rules) != "" {
			// A program could make it itself where it is missing.
			at := slices.IndexFunc(rules, func(r landlock.Rule) bool { return r.Path == f.Name })
			rules[at].Make = true
		}
	}
	for i, r := range rules {
		if slices.ContainsFunc(Visible(spec, host.Volumes), func(v Volume) bool { return within(r.Path, path.Clean(v.Destination)) }) {
			rules[i].Access &^= landlock.ResolveUnix // the sockets there are the host's as well
		}
	}
	return rules
}

func listed(p *policy.Policy, f policy.Path, access landlock.Access) landlock.Rule {
	r := landlock.Rule{Path: f.Name, Access: access, Optional: f.Optional, Why: "built-in"}
	if f.Line > 0 {
		r.Why = fmt.Sprintf("%s:%d", filepath.Base(p.File), f.Line)
	}
	// Directories that a policy grants for writing are made where they are
	// missing; the system's own (/dev, /var) are the image's business.
	r.Make = access == landlock.ReadWrite && (f.Line > 0 || f.Name == sandboxDir || f.Name == "/tmp") && !within(f.Name, "/dev")
	return r
}

// writeAccess is what writing means for a path: device nodes are used, not
// replaced, and /dev/pts is a directory of such nodes.
func writeAccess(name string) landlock.Access {
	switch {
	case name == "/dev/shm", name == "/dev/mqueue":
		return landlock.ReadWrite
	case within(name, "/dev/pts"):
		return landlock.Terminals
	case within(name, "/dev"):
		return landlock.Device
	}
	return landlock.ReadWrite
}

// engineFiles are mounted by engines for the program to read, and may be
// written as far as they are concerned. But the next create reads the name
// servers there: a program must not choose them.
var engineFiles = []string{"/etc/resolv.conf", "/etc/hosts", "/etc/hostname"}

// volumes grants bind and tmpfs mounts as they are mounted. What the engine
// mounts below /proc, /sys and /dev is covered by the lists or not at all.
func volumes(spec *oci.Spec, p *policy.Policy, host Host) []landlock.Rule {
	var rules []landlock.Rule
	add := func(r landlock.Rule, readOnly bool) {
		if IsKernel(r.Path) || isToken(r.Path) {
			return
		}
		r.Access, r.Mount = landlock.ReadWrite, true
		if readOnly || listedReadOnly(p, r.Path) {
			r.Access = landlock.ReadOnly
		}
		rules = append(rules, r)
	}
	for _, v := range Visible(spec, host.Volumes) {
		dest := path.Clean(v.Destination)
		if isAllowedDevice(p, v) {
			rules = append(rules, landlock.Rule{Path: dest, Access: landlock.Device, Mount: true, Dev: v.Dev, Ino: v.Ino, Why: "device " + v.Source})
			continue
		}
		add(landlock.Rule{Path: dest, Dev: v.Dev, Ino: v.Ino, Why: "volume " + v.Source}, v.ReadOnly || slices.Contains(engineFiles, dest))
	}
	for _, m := range spec.Mounts {
		if dest := path.Clean(m.Destination); m.Type == "tmpfs" && !isBind(m) && top(spec, dest).Type == "tmpfs" {
			add(landlock.Rule{Path: dest, Why: "tmpfs"}, slices.Contains(m.Options, "ro"))
		}
	}
	return rules
}

// Visible returns those of volumes that no later mount covers.
func Visible(spec *oci.Spec, volumes []Volume) []Volume {
	var seen []Volume
	for i, v := range volumes {
		again := slices.ContainsFunc(volumes[i+1:], func(w Volume) bool { return path.Clean(w.Destination) == path.Clean(v.Destination) })
		if !again && isBind(top(spec, path.Clean(v.Destination))) {
			seen = append(seen, v)
		}
	}
	return seen
}

// top returns the mount that is seen at dest, or nothing if that lies higher up.
func top(spec *oci.Spec, dest string) oci.Mount {
	for _, m := range slices.Backward(spec.Mounts) {
		switch at := path.Clean(m.Destination); {
		case at == dest:
			return m
		case within(dest, at):
			return oci.Mount{}
		}
	}
	return oci.Mount{}
}

func isBind(m oci.Mount) bool {
	return m.Type == "bind" || slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind")
}

// IsKernel reports whether dest lies where the kernel's own files are.
func IsKernel(dest string) bool {
	return within(dest, "/proc") || within(dest, "/sys") || within(dest, "/dev")
}

// listedReadOnly reports whether a person wrote dir, or a directory above it,
// into read_only: neither the image's working directory nor a volume makes that
// writable.
func listedReadOnly(p *policy.Policy, dir string) bool {
	return slices.ContainsFunc(p.Filesystem.ReadOnly, func(f policy.Path) bool { return f.Line > 0 && within(dir, f.Name) })
}

// isToken reports whether dest is where Kubernetes puts a service account's
// token: granted only by a policy that lists it.
func isToken(dest string) bool {
	return within(dest, "/var/run/secrets/kubernetes.io") || within(dest, "/run/secrets/kubernetes.io")
}

// systemTrees and systemDirs are never writable because they happen to be the
// working directory: the first with all below them, the second themselves.
var (
	systemTrees = []string{"/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/proc", "/run", "/sbin", "/sys",
		"/usr/bin", "/usr/include", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/libexec", "/usr/sbin", "/usr/share",
		"/usr/local/bin", "/usr/local/lib", "/usr/local/sbin", "/var/lib/dpkg", "/var/lib/rpm", "/var/run", "/nix"}
	systemDirs = []string{"/", "/home", "/media", "/mnt", "/opt", "/root", "/srv", "/usr", "/usr/local", "/usr/src", "/var", "/var/lib", "/var/log"}
)

func isSystemDir(dir string) bool {
	return slices.Contains(systemDirs, dir) || slices.ContainsFunc(systemTrees, func(t string) bool { return within(dir, t) })
}

// private are the top-level directories that image: auto leaves out: users',
// the kernel's, and where hosts mount things.
var private = []string{"root", "home", "proc", "sys", "dev", "tmp", "run", "mnt", "media", "boot"}

// ImageRules returns what image: auto adds: the image's own directories, and the
// files beside them, may be read and executed, and where its program lies below
// a home, that subtree.
func ImageRules(spec *oci.Spec, p *policy.Policy, image Image) []landlock.Rule {
	if p.Filesystem.Image == policy.ImageStrict {
		return nil
	}
	var rules []landlock.Rule
	grant := func(dir string) {
		if denied(p, dir) {
			return
		}
		rules = append(rules, landlock.Rule{Path: dir, Access: landlock.ReadOnly, Optional: true, Implied: true, Why: "image"})
	}
	for _, name := range image.TopLevel {
		if !slices.Contains(private, name) {
			grant("/" + name)
		}
	}
	for _, dir := range append(searchPath(spec.Process.Env), path.Clean(spec.Process.Cwd)) {
		if belowHome(dir) {
			grant(dir)
		}
	}
	if dir := path.Dir(image.Program); belowHome(dir) {
		grant(dir)
	} else if belowHome(image.Program) {
		grant(image.Program)
	}
	return rules
}

// SpareVolumes leaves out, where volumes are granted by the lists alone, what
// the image would grant of them: its working directory, its search path or one
// of its own directories may be a volume, or hold one, or lie in one.
func SpareVolumes(p *policy.Policy, image Image, rules []landlock.Rule) []landlock.Rule {
	if p.Filesystem.Volumes != policy.VolumesPolicyOnly {
		return rules
	}
	listed := func(name string, access landlock.Access) bool {
		return slices.ContainsFunc(rules, func(r landlock.Rule) bool {
			return !r.Implied && within(name, r.Path) && r.Access&access == access
		})
	}
	return slices.DeleteFunc(slices.Clone(rules), func(r landlock.Rule) bool {
		return r.Implied && slices.ContainsFunc(image.Volumes, func(v string) bool {
			return within(v, r.Path) && !listed(v, r.Access) || within(r.Path, v) && !listed(r.Path, r.Access)
		})
	})
}

func searchPath(env []string) []string {
	var dirs []string
	for _, kv := range env {
		if v, ok := strings.CutPrefix(kv, "PATH="); ok {
			dirs = nil // the last one counts
			for _, d := range strings.Split(v, ":") {
				if path.IsAbs(d) {
					dirs = append(dirs, path.Clean(d))
				}
			}
		}
	}
	return dirs
}

// belowHome reports whether dir lies in a user's home and is not one: /root/x
// and /home/u/x are, /root, /home and /home/u are not.
func belowHome(dir string) bool {
	return dir != "/root" && within(dir, "/root") ||
		within(dir, "/home") && strings.Count(dir, "/") >= 3
}

// Writable returns the directories that rules let a program write.
func Writable(rules []landlock.Rule) []string {
	var dirs []string
	for _, r := range rules {
		if r.Access&landlock.MakeReg != 0 && !within(r.Path, "/dev") && !slices.Contains(dirs, r.Path) {
			dirs = append(dirs, r.Path)
		}
	}
	return dirs
}
