package specs

import (
	"fmt"
	"path"
	"slices"
	"strings"

	oci "github.com/opencontainers/runtime-spec/specs-go"

	"nemoclaw/specs/policy"
)

// homeDirs are where HOME may point instead, the best first.
var homeDirs = []string{sandboxDir, "/tmp", "/var/tmp"}

// basedirs are the directories of a user that have a variable of their own
// (XDG Base Directory Specification); without it each lies below HOME, or
// programs do without.
var basedirs = []string{"XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR"}

// homes sets HOME to a directory that the program may write, unless it is in
// one, and takes the variables away that name others: git, npm and pip end in
// errors where a configuration file exists and cannot be read, or a cache cannot
// be made. The old home stays unreadable; the new one is granted already, so
// that nothing is opened by this. Without HOME in the environment runc would
// take it from the image's /etc/passwd, which is /root as a rule.
func homes(proc *oci.Process, p *policy.Policy, writable []string) []Edit {
	places := slices.Concat(homeDirs, writable) // the last resort: whatever there is
	at := slices.IndexFunc(places, func(dir string) bool { return mayWrite(p, writable, dir) })
	if at < 0 {
		return nil
	}
	home, was, dropped := places[at], "", []string(nil)
	env := make([]string, 0, len(proc.Env)+1)
	for _, kv := range proc.Env {
		name, value, _ := strings.Cut(kv, "=")
		switch {
		case name == "HOME":
			was = value
			continue
		case slices.Contains(basedirs, name) && value != "" && !mayWrite(p, writable, value):
			dropped = append(dropped, name)
			continue
		}
		env = append(env, kv)
	}
	var edits []Edit
	if len(dropped) > 0 {
		edits = append(edits, Edit{Does: fmt.Sprintf("process: without %s, which named what is not writable", strings.Join(dropped, " "))})
	}
	if mayWrite(p, writable, was) {
		home = was
	} else if was != "" {
		edits = append(edits, Edit{Does: fmt.Sprintf("process: HOME is %s, %s is not writable", home, was)})
	}
	if home != was || len(dropped) > 0 {
		env = append(env, "HOME="+home)
		edits = append(edits, Edit{apply: func(s *oci.Spec) { s.Process.Env = env }})
	}
	return edits
}

// mayWrite reports whether dir lies in one of the writable directories, and not
// in what the policy takes out of it.
func mayWrite(p *policy.Policy, writable []string, dir string) bool {
	if dir = path.Clean(dir); denied(p, dir) {
		return false
	}
	best := ""
	for _, w := range writable {
		if within(dir, w) && (best == "" || within(w, best)) {
			best = w
		}
	}
	return best != "" && !slices.ContainsFunc(p.Filesystem.ReadOnly, func(f policy.Path) bool {
		return f.Line > 0 && f.Name != best && within(f.Name, best) && within(dir, f.Name)
	})
}
