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

// StaticRules returns the rules that follow from the policy and the spec: the
// lists, the working directory, the volumes.
func StaticRules(spec *oci.Spec, p *policy.Policy, host Host) []landlock.Rule {
	var rules []landlock.Rule
	for _, f := range p.Filesystem.ReadOnly {
		rules = append(rules, listed(p, f, landlock.ReadOnly))
	}
	for _, f := range p.Filesystem.ReadWrite {
		rules = append(rules, listed(p, f, writeAccess(f.Name)))
	}
	if dir := path.Clean(spec.Process.Cwd); p.Filesystem.IncludeWorkdir && !isSystemDir(dir) {
		rules = append(rules, landlock.Rule{Path: dir, Access: landlock.ReadWrite, Why: "working directory"})
	}
	if p.Filesystem.Volumes == policy.VolumesFollow {
		rules = append(rules, volumes(spec, host)...)
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
func volumes(spec *oci.Spec, host Host) []landlock.Rule {
	var rules []landlock.Rule
	add := func(dest string, readOnly bool, what string) {
		dest = path.Clean(dest)
		if within(dest, "/proc") || within(dest, "/sys") || within(dest, "/dev") || isToken(dest) {
			return
		}
		access := landlock.ReadWrite
		if readOnly {
			access = landlock.ReadOnly
		}
		rules = append(rules, landlock.Rule{Path: dest, Access: access, Mount: true, Why: what})
	}
	for _, v := range host.Volumes {
		add(v.Destination, v.ReadOnly || slices.Contains(engineFiles, path.Clean(v.Destination)), "volume "+v.Source)
	}
	for _, m := range spec.Mounts {
		if m.Type == "tmpfs" {
			add(m.Destination, slices.Contains(m.Options, "ro"), "tmpfs")
		}
	}
	return rules
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

// ImageRules returns what image: auto adds: the image's own directories may be
// read and executed, and where its program lies below a home, that subtree.
func ImageRules(spec *oci.Spec, p *policy.Policy, image Image) []landlock.Rule {
	if p.Filesystem.Image == policy.ImageStrict {
		return nil
	}
	var rules []landlock.Rule
	grant := func(dir string) {
		rules = append(rules, landlock.Rule{Path: dir, Access: landlock.ReadOnly, Optional: true, Why: "image"})
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
		if r.Access&landlock.MakeReg != 0 && !within(r.Path, "/dev") {
			dirs = append(dirs, r.Path)
		}
	}
	return dirs
}
