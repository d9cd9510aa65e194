package control

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// The files of a container's state directory, <run_dir>/<id>.<hash of root>.
const (
	SandboxFile = "sandbox.json" // Sandbox; written by nemoclaw, renamed into place
	CgroupsFile = "cgroups.json" // map[string]string: the container's cgroup by hierarchy, absolute
	GatewayLink = "gateway"      // symbolic link to the directory of the gateway that the container is behind
)

// The files of a gateway's state directory, which is named for the container
// that brought it up and for the namespace that it serves (GatewayDir), and
// lives as long as any container behind it.
const (
	AttachFile    = "attach.json"  // Attach; written by the first monitor
	MonitorFile   = "monitor.json" // Monitor; written by the monitor once it can be signalled
	RuntimeSocket = "runtime.sock" // SOCK_SEQPACKET, runtime.go
	ControlSocket = "control.sock" // HTTP, operator.go
	NamesFile     = "names"        // the worker's journal of synthetic addresses
	GrantsFile    = "grants.json"  // Decisions; the monitor's
	DomainsFile   = "domains.json" // Domains of the containers, by LauncherName; the monitor's
	UplinkPin     = "uplink"       // the uplink namespace, bind-mounted
)

// Sandbox is what nemoclaw stored of a container at its create.
type Sandbox struct {
	ID      string    `json:"id"`     // the container's, as the engine gave it
	Root    string    `json:"root"`   // absolute --root: ids are unique only within it
	Bundle  string    `json:"bundle"` // absolute
	Created time.Time `json:"created"`
	Status  string    `json:"status"` // "created" or "started"; whether it still runs is the kernel's to say

	InitPID   int    `json:"init_pid"`
	InitStart uint64 `json:"init_start"` // /proc/PID/stat field 22, clock ticks: tells a reused pid

	PolicyName   string `json:"policy_name"`   // as it was chosen: a name, a path, or "built-in"
	PolicyFile   string `json:"policy_file"`   // the file that is watched; empty for the built-in
	PolicyDigest string `json:"policy_digest"` // sha256 of the file's bytes at create
	Policy       string `json:"policy"`        // those bytes: exec obeys what was read at create
	AuditLog     string `json:"audit_log"`

	// Confined tells what is on, for exec, status and list; runtime fills it.
	Confined json.RawMessage `json:"confined,omitempty"`
}

// StoredNote begins the line of the audit log that tells the digest of Confined:
// who changes the state file has the chain of the log against him.
const StoredNote = "stored: what the container was confined by has sha256 "

// ConfinedDigest is what follows StoredNote.
func (s *Sandbox) ConfinedDigest() string {
	sum := sha256.Sum256(s.Confined)
	return hex.EncodeToString(sum[:])
}

// Monitor tells how to signal a monitor: by a pidfd, after Start was compared.
type Monitor struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // /proc/PID/stat field 22
}

// StartTime returns when the process pid was started, in clock ticks since boot:
// field 22 of /proc/PID/stat (proc_pid_stat(5)). With it a pid names one process.
func StartTime(pid int) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// Field 2 is the program's name in parentheses and may hold anything.
	_, rest, ok := strings.Cut(string(b[strings.LastIndexByte(string(b), ')')+1:]), " ")
	fields := strings.Fields(rest)
	if !ok || len(fields) < 20 {
		return 0, fmt.Errorf("cannot understand /proc/%d/stat", pid)
	}
	return strconv.ParseUint(fields[19], 10, 64)
}

// Dir returns the state directory of the container id under root.
func Dir(runDir, root, id string) string {
	sum := sha256.Sum256([]byte(root + "\x00" + id))
	return filepath.Join(runDir, id+"."+hex.EncodeToString(sum[:4]))
}

// IsDir tells whether name is that of a container's state directory. The one of
// all of them holds others: libcontainer's, for instance, whose default it is.
func IsDir(name string) bool {
	i := strings.LastIndexByte(name, '.')
	if i < 1 || len(name)-i-1 != 8 {
		return false
	}
	_, err := hex.DecodeString(name[i+1:])
	return err == nil
}

// Gateway is the state directory of the gateway that the container of dir is
// behind.
func Gateway(dir string) string { return filepath.Join(dir, GatewayLink) }

// gatewayMark stands between a container's directory and the number of its
// namespace in the name of a gateway's directory.
const gatewayMark = ".net"

// GatewayDir returns the state directory of the gateway that the container of
// dir brings up for the network namespace whose inode is netns. While the
// namespace lives no other has that number: it is the index by which those who
// join it find the gateway.
func GatewayDir(dir string, netns uint64) string {
	return dir + gatewayMark + strconv.FormatUint(netns, 10)
}

// GatewayDirs returns the directories below runDir of gateways for the network
// namespace whose inode is netns. All but one are left over from namespaces
// that had the number before.
func GatewayDirs(runDir string, netns uint64) ([]string, error) {
	entries, err := os.ReadDir(runDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("cannot list gateways: %w", err)
	}
	var found []string
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), gatewayMark+strconv.FormatUint(netns, 10)) {
			found = append(found, filepath.Join(runDir, e.Name()))
		}
	}
	return found, nil
}

// CutGateway takes a gateway's directory's name apart: it returns the name of the
// directory of the container that brought it up, or ok false for another name.
func CutGateway(name string) (container string, ok bool) {
	i := strings.LastIndex(name, gatewayMark)
	if i < 0 {
		return "", false
	}
	if _, err := strconv.ParseUint(name[i+len(gatewayMark):], 10, 64); err != nil {
		return "", false
	}
	return name[:i], true
}

// ReadAttach reads what the gateway of the directory gateway was told at its
// start.
func ReadAttach(gateway string) (*Attach, error) {
	a := new(Attach)
	return a, readJSON(filepath.Join(gateway, AttachFile), a)
}

// WriteAttach keeps it, whole.
func WriteAttach(gateway string, a *Attach) error {
	return writeJSON(filepath.Join(gateway, AttachFile), a)
}

// ReadSandbox reads dir's Sandbox.
func ReadSandbox(dir string) (*Sandbox, error) {
	s := new(Sandbox)
	return s, readJSON(filepath.Join(dir, SandboxFile), s)
}

// WriteSandbox replaces dir's Sandbox whole.
func WriteSandbox(dir string, s *Sandbox) error {
	return writeJSON(filepath.Join(dir, SandboxFile), s)
}

// ReadMonitor reads the Monitor of a gateway's directory.
func ReadMonitor(dir string) (*Monitor, error) {
	m := new(Monitor)
	return m, readJSON(filepath.Join(dir, MonitorFile), m)
}

// WriteMonitor replaces it whole.
func WriteMonitor(dir string, m *Monitor) error {
	return writeJSON(filepath.Join(dir, MonitorFile), m)
}

// Sandboxes returns the state directories below runDir that hold a Sandbox,
// with it, in the order of their names. A directory that cannot be read is
// left out: it is being made or removed.
func Sandboxes(runDir string) (map[string]*Sandbox, error) {
	entries, err := os.ReadDir(runDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("cannot list sandboxes: %w", err)
	}
	found := map[string]*Sandbox{}
	for _, e := range entries {
		dir := filepath.Join(runDir, e.Name())
		if s, err := ReadSandbox(dir); err == nil {
			found[dir] = s
		}
	}
	return found, nil
}

// Unread is why there are sandboxes below runDir that Sandboxes does not tell of,
// or nil: their state is damaged, or another version's.
func Unread(runDir string) error {
	files, err := filepath.Glob(filepath.Join(runDir, "*", SandboxFile))
	for _, file := range files {
		_, rerr := ReadSandbox(filepath.Dir(file))
		if !errors.Is(rerr, fs.ErrNotExist) { // it ended meanwhile
			err = errors.Join(err, rerr)
		}
	}
	if err != nil {
		return fmt.Errorf("cannot tell of every sandbox: %w", err)
	}
	return nil
}

// Find returns the one sandbox below runDir whose id is, or begins with, id.
func Find(runDir, id string) (string, *Sandbox, error) {
	all, err := Sandboxes(runDir)
	if err != nil {
		return "", nil, err
	}
	if id == "" {
		return "", nil, errors.New("cannot find a sandbox without an id")
	}
	var dirs []string
	var exact []string
	for dir, s := range all {
		if s.ID == id {
			exact = append(exact, dir)
		}
		if strings.HasPrefix(s.ID, id) {
			dirs = append(dirs, dir)
		}
	}
	if len(exact) > 0 {
		dirs = exact
	}
	switch len(dirs) {
	case 0:
		return "", nil, fmt.Errorf("cannot find sandbox %q: no such sandbox", id)
	case 1:
		return dirs[0], all[dirs[0]], nil
	}
	return "", nil, fmt.Errorf("cannot choose sandbox %q: %d sandboxes match", id, len(dirs))
}

// maxState is the longest file of a state directory that is read, in bytes: a
// policy has at most a mebibyte, and is stored as a string of JSON.
const maxState = 16 << 20

func readJSON(file string, v any) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxState+1))
	if err != nil {
		return err
	}
	if err := decodeState(b, v); err != nil {
		return fmt.Errorf("cannot understand %s: %w", file, err)
	}
	return nil
}

// decodeState refuses what it does not know: a newer version stored it, and
// means something by it.
func decodeState(b []byte, v any) error {
	if len(b) > maxState {
		return fmt.Errorf("it has more than %d bytes", maxState)
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows its end")
	}
	return nil
}

// writeJSON replaces file whole: a reader sees the old text or the new.
func writeJSON(file string, v any) error { return replaceJSON(file, v, false) }

// writeSynced is writeJSON that returns when the disk has it.
func writeSynced(file string, v any) error { return replaceJSON(file, v, true) }

func replaceJSON(file string, v any, sync bool) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(file), ".new-*")
	if err != nil {
		return err
	}
	_, err = tmp.Write(b)
	if err == nil && sync {
		err = tmp.Sync()
	}
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp.Name(), file)
	}
	if err != nil {
		os.Remove(tmp.Name())
		return fmt.Errorf("cannot write %s: %w", file, err)
	}
	if sync {
		return syncDir(filepath.Dir(file))
	}
	return nil
}

// syncDir makes a rename last.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
