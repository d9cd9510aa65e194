package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"nemoclaw/examples/demo/attempt"
)

// layer is who answered an attempt, as far as the evidence goes.
type layer string

// The four layers of a sandbox, and what else there is to say.
const (
	byLandlock layer = "Landlock"
	bySeccomp  layer = "seccomp"
	byNetwork  layer = "network"
	byEgress   layer = "egress"
	byNobody   layer = "-"       // none of them, as far as can be told
	outside    layer = "outside" // nobody asked: it was looked at from without
)

// ofFile finds out who refused a file. Landlock says EACCES (landlock(7)), and
// so do the kernel's own checks; these are out of question where the owner of
// the file asks, and its mode lets him.
func ofFile(o attempt.Outcome) layer {
	if !o.Did && o.Errno == "EACCES" && o.OwnerMay {
		return byLandlock
	}
	return byNobody
}

// ofCall finds out who refused a system call: a filter, if it answers in the
// same way where the kernel answers otherwise, which outside tells.
func ofCall(o attempt.Outcome, outside string) layer {
	if !o.Did && o.Errno != "" && o.Errno == o.Impossible && o.Impossible != outside {
		return bySeccomp
	}
	return byNobody
}

// ofRecord takes the audit log's word for it.
func ofRecord(r *record) layer {
	if r != nil {
		return byEgress
	}
	return byNobody
}

// record is what the demo reads of a line of the audit log.
type record struct {
	Time int64 `json:"time"` // milliseconds since 1970
	Dst  struct {
		Host string `json:"hostname"`
		IP   string `json:"ip"`
		Port uint16 `json:"port"`
	} `json:"dst_endpoint"`
	Actor struct {
		Process struct {
			PID  int
			File struct{ Path string }
		}
	}
	Rule struct {
		Name string // absolute file:line, or "grant"
	} `json:"firewall_rule"`
	Unmapped struct {
		Verdict, Reason, Kind string
		PolicyDigest          string `json:"policy_digest"`
	}
}

// is tells whether r is about the host, or the address, and port.
func (r *record) is(verdict, host string, port uint16) bool {
	return r.Unmapped.Verdict == verdict && (r.Dst.Host == host || r.Dst.IP == host) && r.Dst.Port == port
}

// String is the record on one line: when, what, why, who.
func (r *record) String() string {
	return fmt.Sprintf("%s %s %s:%d, %s, %s[%d]", time.UnixMilli(r.Time).UTC().Format("15:04:05.000Z"), r.Unmapped.Verdict,
		r.Dst.Host, r.Dst.Port, r.Unmapped.Reason, r.Actor.Process.File.Path, r.Actor.Process.PID)
}

// rule is what decided, without the directory.
func (r *record) rule() string { return filepath.Base(r.Rule.Name) }

// mark has recorded look only at what is written from now on: before the
// sandbox is there, at everything.
func (s *stage) mark() error {
	text, err := s.lines()
	if errors.Is(err, errNoLog) {
		return nil
	}
	s.marked = len(text)
	return err
}

// recorded returns the latest line since the mark on the host and port, or nil.
// Decisions are in the log before the program learns of them, so there is
// nothing to wait for.
func (s *stage) recorded(verdict, host string, port uint16) (*record, error) {
	text, err := s.lines()
	if err != nil {
		return nil, err
	}
	var latest *record
	for line := range bytes.Lines(text[s.marked:]) {
		r := new(record)
		if err := json.Unmarshal(line, r); err != nil {
			return nil, fmt.Errorf("the audit log has a line that is none: %w", err)
		}
		if r.is(verdict, host, port) {
			latest = r
		}
	}
	return latest, nil
}

// lines returns the audit log up to the end of its last line: more may be in
// the middle of being written.
func (s *stage) lines() ([]byte, error) {
	file, err := s.log()
	if err != nil {
		return nil, err
	}
	b, err := os.ReadFile(file)
	return b[:bytes.LastIndexByte(b, '\n')+1], err
}

var errNoLog = errors.New("there is no audit log")

// log returns the path of the sandbox's audit log.
func (s *stage) log() (string, error) {
	files, err := filepath.Glob(s.path("log", "*.jsonl"))
	if err == nil && len(files) == 0 {
		err = errNoLog
	}
	if err != nil {
		return "", err
	}
	return files[0], nil
}

// await follows the log until it has a line that fits.
func (s *stage) await(ctx context.Context, fits func(*record) bool) error {
	follow := s.ctl("log", "--follow", "--json", s.id)
	out, err := follow.StdoutPipe()
	if err != nil {
		return err
	}
	if err := follow.Start(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { follow.Process.Kill() })
	defer func() {
		stop()
		follow.Process.Kill()
		follow.Wait()
	}()
	for lines := bufio.NewReader(out); ; {
		text, err := lines.ReadBytes('\n')
		if err != nil {
			return errors.New("the audit log never had the line that was waited for")
		}
		r := new(record)
		if json.Unmarshal(text, r) == nil && fits(r) {
			return nil
		}
	}
}

// inForce waits until the policy file, as it stands, is the one in force.
func (s *stage) inForce(ctx context.Context) error {
	text, err := os.ReadFile(s.path("policy.yaml"))
	if err != nil {
		return err
	}
	sum := sha256.Sum256(text)
	digest := hex.EncodeToString(sum[:])
	return s.await(ctx, func(r *record) bool { return r.Unmapped.Kind == "policy" && r.Unmapped.PolicyDigest == digest })
}

// granted tells whether the runtime's own record of the sandbox says that dir
// may be written.
func (s *stage) granted(dir string) (bool, error) {
	out, err := s.ctl("status", "--json", s.id).Output()
	if err != nil {
		return false, fmt.Errorf("nemoclawctl status gave no answer: %w", err)
	}
	var status struct {
		Confined struct{ Writable []string }
	}
	if err := json.Unmarshal(out, &status); err != nil {
		return false, err
	}
	for _, w := range status.Confined.Writable {
		if w == dir {
			return true, nil
		}
	}
	return false, nil
}

// mounts returns the mount points below the stage's directory.
func (s *stage) mounts() []string {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return []string{"unknown: " + err.Error()}
	}
	var found []string
	for line := range strings.Lines(string(b)) {
		// The fifth field is the mount point (proc_pid_mountinfo(5)).
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], s.dir+"/") {
			found = append(found, f[4])
		}
	}
	return found
}

// processes returns those that name the stage's directory or the container in
// their arguments, and those that stand in the directory.
func (s *stage) processes() []string {
	var found []string
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		cmdline, _ := os.ReadFile(filepath.Join(dir, "cmdline")) // it may have ended meanwhile
		root, _ := os.Readlink(filepath.Join(dir, "root"))
		if bytes.Contains(cmdline, []byte(s.dir)) || bytes.Contains(cmdline, []byte(s.id)) || strings.HasPrefix(root, s.dir) {
			found = append(found, filepath.Base(dir)+" "+strings.ReplaceAll(string(cmdline), "\x00", " "))
		}
	}
	return found
}

// cgroups returns the control groups that bear the container's name.
func (s *stage) cgroups() []string {
	var found []string
	filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.Contains(d.Name(), s.id) {
			found = append(found, path)
		}
		return nil // groups of others come and go
	})
	return found
}

// left returns everything of the demo's that still is.
func (s *stage) left() []string {
	var found []string
	for _, l := range []struct {
		what string
		list []string
	}{{"process", s.processes()}, {"mount", s.mounts()}, {"cgroup", s.cgroups()}} {
		for _, item := range l.list {
			found = append(found, l.what+" "+item)
		}
	}
	if _, err := os.Lstat(s.dir); err == nil {
		found = append(found, "directory "+s.dir)
	}
	return found
}
