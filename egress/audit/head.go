package audit

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Head is the end of a chain: what the last line must be.
type Head struct {
	Sequence uint64 `json:"sequence"` // 0: no line yet
	Hash     string `json:"hash"`     // of the last line
	Length   int64  `json:"length"`   // of the last line, with its line feed, in bytes
	Offset   int64  `json:"offset"`   // where the last line ends in the file
}

// genesis stands for the line before the first.
var genesis = strings.Repeat("0", sha256.Size*2)

// headSize is the fixed length of a head file: rewritten in one piece, it is
// never a mixture of an old and a longer or shorter new text.
const headSize = 192

// HeadFile returns the name of the file that holds the head of the log file.
func HeadFile(file string) string { return file + ".head" }

// ReadHead reads the head of the log file. A log without one has nil.
func ReadHead(file string) (*Head, error) {
	f, err := os.OpenFile(HeadFile(file), os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read the audit log's head: %w", err)
	}
	defer f.Close()
	return readHead(f)
}

// readHead returns nil for an empty file: a crash between its making and its
// first writing, when the log had no line either.
func readHead(f *os.File) (*Head, error) {
	b, err := io.ReadAll(io.NewSectionReader(f, 0, headSize+1))
	if err != nil {
		return nil, fmt.Errorf("cannot read the audit log's head: %w", err)
	}
	if len(b) == 0 {
		return nil, nil
	}
	h := new(Head)
	if err := json.Unmarshal(b, h); err != nil || len(b) != headSize || len(h.Hash) != len(genesis) || h.Length < 0 || h.Offset < h.Length {
		return nil, fmt.Errorf("cannot understand the audit log's head %s", f.Name())
	}
	return h, nil
}

func writeHead(f *os.File, h Head) error {
	text := make([]byte, 0, headSize)
	text = strconv.AppendUint(append(text, `{"sequence":`...), h.Sequence, 10)
	text = append(append(append(text, `,"hash":"`...), h.Hash...), `","length":`...)
	text = strconv.AppendInt(text, h.Length, 10)
	text = append(strconv.AppendInt(append(text, `,"offset":`...), h.Offset, 10), '}')
	text = append(text, strings.Repeat(" ", headSize-1-len(text))...)
	text = append(text, '\n')
	if _, err := f.WriteAt(text, 0); err != nil {
		return fmt.Errorf("cannot write the audit log's head: %w", err)
	}
	return nil
}

// after is the head once line, with its line feed, has been appended.
func (h Head) after(line []byte) Head {
	return Head{
		Sequence: h.Sequence + 1,
		Hash:     hash(line[:len(line)-1]),
		Length:   int64(len(line)),
		Offset:   h.Offset + int64(len(line)),
	}
}

func hash(line []byte) string {
	sum := sha256.Sum256(line)
	return hex.EncodeToString(sum[:])
}
