package monitor

import (
	"encoding/binary"
	"fmt"
	"io"
	"net/netip"
	"os"
	goruntime "runtime"

	"golang.org/x/sys/unix"
)

// diag asks a network namespace for its sockets (sock_diag(7)). It is for one
// goroutine at a time.
type diag struct {
	fd  int // a NETLINK_SOCK_DIAG socket that was opened in the namespace
	seq uint32
	req [requestSize]byte
	buf [4096]byte
}

// newDiag opens the socket; sockets stay in the namespace of the thread that
// made them.
func newDiag(ns *os.File) (*diag, error) {
	d := new(diag)
	done := make(chan error)
	go func() {
		goruntime.LockOSThread() // and never unlocked: the thread ends here
		err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
		if err == nil {
			d.fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_INET_DIAG)
		}
		done <- err
	}()
	err := <-done
	if err == nil {
		// The kernel answers at once, or not at all.
		timeout := unix.NsecToTimeval(scanBudget.Nanoseconds())
		_ = unix.SetsockoptTimeval(d.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout)
		err = unix.Connect(d.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	}
	if err != nil {
		return nil, fmt.Errorf("cannot ask for the sandbox's sockets: %w", err)
	}
	return d, nil
}

func (d *diag) close() { unix.Close(d.fd) }

// socket is what the kernel knows of one.
type socket struct {
	cookie     uint64 // names it for as long as the machine runs
	inode, uid uint32
}

// Layout of a request and an answer, from linux/inet_diag.h and netlink(7): a
// header of 16 bytes, then inet_diag_req_v2 or inet_diag_msg.
const (
	headerSize      = 16
	requestSize     = headerSize + 56
	sockDiagBy      = 20 // SOCK_DIAG_BY_FAMILY
	answerCookie    = headerSize + 44
	answerUID       = headerSize + 64
	answerInode     = headerSize + 68
	answerSize      = headerSize + 72
	requestID       = headerSize + 8 // inet_diag_sockid
	requestSrc      = requestID + 4
	requestDst      = requestID + 20
	requestCookie   = requestID + 40
	allStates       = ^uint32(0)
	anyCookie       = ^uint64(0)
	answerTypeError = unix.NLMSG_ERROR
)

// lookup asks for the one TCP socket whose local end is src and whose remote
// end is dst (sock_diag(7)).
func (d *diag) lookup(src, dst netip.AddrPort) (socket, error) {
	d.seq++
	if err := unix.Send(d.fd, d.request(src, dst), 0); err != nil {
		return socket{}, err
	}
	for {
		n, err := unix.Read(d.fd, d.buf[:])
		if err != nil {
			return socket{}, err
		}
		if n < headerSize+4 {
			return socket{}, io.ErrUnexpectedEOF
		}
		host := binary.NativeEndian
		switch answer := d.buf[:n]; {
		case host.Uint32(answer[8:]) != d.seq: // of a question that was given up
		case host.Uint16(answer[4:]) == answerTypeError:
			return socket{}, unix.Errno(-int32(host.Uint32(answer[headerSize:])))
		case n < answerSize:
			return socket{}, io.ErrUnexpectedEOF
		default:
			return socket{
				cookie: host.Uint64(answer[answerCookie:]),
				inode:  host.Uint32(answer[answerInode:]),
				uid:    host.Uint32(answer[answerUID:]),
			}, nil
		}
	}
}

func (d *diag) request(src, dst netip.AddrPort) []byte {
	req := d.req[:]
	clear(req)
	host := binary.NativeEndian
	host.PutUint32(req[0:], requestSize)
	host.PutUint16(req[4:], sockDiagBy)
	host.PutUint16(req[6:], unix.NLM_F_REQUEST)
	host.PutUint32(req[8:], d.seq)
	req[headerSize] = unix.AF_INET6
	if src.Addr().Unmap().Is4() {
		req[headerSize] = unix.AF_INET
	}
	req[headerSize+1] = unix.IPPROTO_TCP
	host.PutUint32(req[headerSize+4:], allStates)
	binary.BigEndian.PutUint16(req[requestID:], src.Port())
	binary.BigEndian.PutUint16(req[requestID+2:], dst.Port())
	copy(req[requestSrc:], src.Addr().Unmap().AsSlice())
	copy(req[requestDst:], dst.Addr().Unmap().AsSlice())
	host.PutUint64(req[requestCookie:], anyCookie)
	return req
}
