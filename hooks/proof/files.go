package proof

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"nemoclaw/egress/audit"
	"nemoclaw/egress/control"
)

// files looks at the audit log and the state directory.
func (b *box) files() []Layer {
	return []Layer{b.auditLayer(), b.stateLayer()}
}

func (b *box) auditLayer() Layer {
	l := Layer{Name: "audit", Asked: "every decision a line, each chained to the one before"}
	l.Verified = "the whole chain of " + b.AuditLog + " read and compared with its head"
	rep, err := audit.VerifyParts(b.AuditLog)
	if err != nil {
		l.fault("%v", err)
		return l
	}
	l.Active = fmt.Sprintf("%d lines, the last with sha256 %.12s", rep.Lines, rep.Head.Hash)
	for _, f := range rep.Faults {
		l.fault("%s:%s", b.AuditLog, f)
	}
	if b.status != nil && b.status.AuditFault != "" {
		l.fault("it cannot be written; everything is refused: %s", b.status.AuditFault)
	}
	return l
}

// stateLayer checks that what was asked is what create stored, against the
// audit log, and that nobody but root can reach the gateway.
func (b *box) stateLayer() Layer {
	l := Layer{Name: "state", Asked: "what create stored; directory and sockets for root alone"}
	b.checkModes(&l)
	sum := sha256.Sum256([]byte(b.Policy))
	if hex.EncodeToString(sum[:]) != b.PolicyDigest {
		l.fault("%s: the policy in it is not the one whose digest it has", control.SandboxFile)
	}
	told, err := readTold(b.AuditLog, b.ID)
	switch {
	case err != nil:
		l.hide("whether it is what create stored: %v", err)
		return l
	case told.stored == "":
		l.hide("whether it is what create stored: the audit log does not tell; a container that is created anew has it")
		return l
	}
	if told.stored != b.ConfinedDigest() {
		l.fault("%s: what the container was confined by is not what the audit log says create stored", control.SandboxFile)
	}
	if told.policy != "" && told.policy != b.PolicyDigest {
		l.fault("%s: the policy is not the one that the audit log names", control.SandboxFile)
	}
	l.Active = fmt.Sprintf("sha256 %.12s, modes as made", b.ConfinedDigest())
	l.Verified = "digests compared with the audit log's, owners and modes read"
	return l
}

func (b *box) checkModes(l *Layer) {
	for _, f := range []struct {
		name string
		mode os.FileMode
	}{
		{".", os.ModeDir | 0o700},
		{control.SandboxFile, 0o600},
		{control.GatewayLink + "/.", os.ModeDir | 0o700},
		{filepath.Join(control.GatewayLink, control.ControlSocket), os.ModeSocket | 0o600},
		{filepath.Join(control.GatewayLink, control.RuntimeSocket), os.ModeSocket | 0o600},
	} {
		st, err := os.Lstat(b.dir + "/" + f.name)
		if errors.Is(err, os.ErrNotExist) && strings.HasPrefix(f.name, control.GatewayLink) {
			continue // the gateway is gone, which its own layer tells
		}
		if err != nil {
			l.fault("%v", err)
			continue
		}
		if st.Mode() != f.mode {
			l.fault("%s has the mode %v, and not %v", filepath.Join(b.dir, f.name), st.Mode(), f.mode)
		}
		if own := st.Sys().(*syscall.Stat_t).Uid; own != uint32(os.Geteuid()) {
			l.fault("%s belongs to user %d", filepath.Join(b.dir, f.name), own)
		}
	}
}

// told is what the audit log says of a container's create.
type told struct{ stored, policy string }

// readTold reads what the log told last of the container id. The
// lines are the gateway's; that nobody else wrote among them is what the audit
// layer is for.
func readTold(file, id string) (told, error) {
	f, err := audit.OpenParts(file)
	if err != nil {
		return told{}, err
	}
	defer f.Close()
	var t told
	for r := bufio.NewReaderSize(f, audit.MaxLine); ; {
		line, err := r.ReadSlice('\n')
		if errors.Is(err, io.EOF) {
			return t, nil
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			continue // none of ours is that long
		}
		if err != nil {
			return t, fmt.Errorf("cannot read the audit log: %w", err)
		}
		t.take(line, id)
	}
}

func (t *told) take(line []byte, id string) {
	if !strings.Contains(string(line), control.StoredNote) && !strings.Contains(string(line), `"policy_digest"`) {
		return
	}
	var v struct {
		Message string `json:"message"`
		Device  struct {
			UID string `json:"uid"`
		} `json:"device"`
		Unmapped struct {
			Kind   string `json:"kind"`
			Digest string `json:"policy_digest"`
		} `json:"unmapped"`
	}
	if json.Unmarshal(line, &v) != nil || v.Device.UID != id {
		return
	}
	switch {
	case v.Unmapped.Kind == audit.KindSegment || v.Unmapped.Kind == audit.KindJoined:
		t.policy = v.Unmapped.Digest
	case v.Unmapped.Kind == audit.KindNote && strings.HasPrefix(v.Message, control.StoredNote):
		t.stored = strings.TrimPrefix(v.Message, control.StoredNote)
	}
}
