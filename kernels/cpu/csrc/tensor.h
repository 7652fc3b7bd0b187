// Tensors from Python, checked: what module.cpp takes in place of addresses.
//
// nanobind's nb::ndarray asks a tensor for a DLPack capsule, by a call into Python: 5 us a tensor (nanobind 3.1, torch
// 2.13), where an op takes up to fifteen, 120 times in a decode step of 25 ms. torch's C exchange API, of which DLPack
// 1.3 has the structs, fills in the same description in 0.1 us, and lends it for as long as the call lasts.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <initializer_list>
#include <string>

#include "kernels.h"

namespace leankv {

namespace nb = nanobind;

// The part of DLPack's DLPackExchangeAPI that is used, by its names.
struct ExchangeApi {
    uint32_t version_major, version_minor;
    void *prev_api, *managed_tensor_allocator, *managed_tensor_from_py_object_no_sync,
        *managed_tensor_to_py_object_no_sync;
    int (*dltensor_from_py_object_no_sync)(void* object, nb::dlpack::dltensor* out);
};

// A torch.Tensor as long as a call lasts.
class Tensor {
  public:
    // Finds torch; called once, when the module is loaded.
    static void bind() {
        const nb::object torch_tensor = nb::module_::import_("torch").attr("Tensor");
        const nb::object capsule = torch_tensor.attr("__dlpack_c_exchange_api__");
        api_ = static_cast<const ExchangeApi*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
        if (!api_) nb::raise_python_error();
        if (api_->version_major != 1)
            throw nb::import_error(
                "this torch describes its tensors by a DLPack other than 1: use torch 2.11 to 2.13.");
        type_ = reinterpret_cast<PyTypeObject*>(torch_tensor.inc_ref().ptr());
    }

    // Whether it is one.
    bool take(nb::handle object) noexcept {
        if (!PyObject_TypeCheck(object.ptr(), type_)) return false;
        described_ = !api_->dltensor_from_py_object_no_sync(object.ptr(), &view_);
        if (!described_) PyErr_Clear(), view_ = {};  // one without memory; refused by name where it is asked for
        return true;
    }

    int64_t size(int dim) const { return dim < view_.ndim ? view_.shape[dim] : 0; }

    // Its numbers, if they are T, contiguous, in main memory and of this shape, in which -1 is any length.
    template <class T>
    T* numbers(const char* name, std::initializer_list<int64_t> shape) const {
        require(name, view_.dtype == nb::dtype<T>(), nb::dtype<T>(), shape);
        return static_cast<T*>(data());
    }

    // The same for numbers of one of the models' dtypes.
    const void* model_numbers(const char* name, std::initializer_list<int64_t> shape) const {
        dtype(name);
        require(name, true, view_.dtype, shape);
        return data();
    }

    // Which of the models' dtypes it has.
    Dtype dtype(const char* name) const {
        using Code = nb::dlpack::dtype_code;
        for (const Dtype known : {kFloat32, kBfloat16, kFloat16})
            if (view_.dtype == nb::dlpack::dtype{uint8_t(known == kBfloat16 ? Code::Bfloat : Code::Float),
                                                 uint8_t(known == kFloat32 ? 32 : 16), 1})
                return known;
        throw nb::value_error(("the cpu kernels take float32, bfloat16 and float16, not " + word(view_.dtype) +
                               " for " + name + ": use another backend.")
                                  .c_str());
    }

    int64_t bytes() const {
        int64_t n = view_.dtype.bits / 8;
        for (int i = 0; i < view_.ndim; i++) n *= view_.shape[i];
        return n;
    }

  private:
    void* data() const { return static_cast<uint8_t*>(view_.data) + view_.byte_offset; }

    void require(const char* name, bool of_type, nb::dlpack::dtype wanted, std::initializer_list<int64_t> shape) const {
        bool fits = described_ && of_type && view_.device.device_type == nb::device::cpu::value &&
                    view_.ndim == int(shape.size());
        for (int i = 0; fits && i < view_.ndim; i++) {
            const int64_t n = shape.begin()[i];
            fits = n < 0 || n == view_.shape[i];
        }
        if (!fits || !contiguous()) refuse(name, wanted, shape);
    }

    bool contiguous() const {
        int64_t stride = 1;
        for (int i = view_.ndim; i-- > 0; stride *= view_.shape[i]) {
            if (view_.shape[i] == 0) return true;
            if (view_.shape[i] != 1 && view_.strides[i] != stride) return bytes() == 0;
        }
        return true;
    }

    [[noreturn]] void refuse(const char* name, nb::dlpack::dtype wanted, std::initializer_list<int64_t> shape) const {
        std::string text = std::string("the cpu kernels want ") + name + " as " + word(wanted) + " [";
        for (const int64_t n : shape) text += (n < 0 ? "*" : std::to_string(n)) + ", ";
        if (shape.size()) text.resize(text.size() - 2);
        text += "], contiguous in main memory, not as ";
        if (!described_) throw nb::value_error((text + "a tensor without memory.").c_str());
        text += word(view_.dtype) + " [";
        for (int i = 0; i < view_.ndim; i++) text += (i ? ", " : "") + std::to_string(view_.shape[i]);
        text += "]";
        if (view_.device.device_type != nb::device::cpu::value) text += " on another device";
        if (!contiguous()) text += " with other strides";
        throw nb::value_error((text + ".").c_str());
    }

    static std::string word(nb::dlpack::dtype dtype) {
        using Code = nb::dlpack::dtype_code;
        const auto code = Code(dtype.code);
        const char* kind = code == Code::Int      ? "int"
                           : code == Code::UInt   ? "uint"
                           : code == Code::Float  ? "float"
                           : code == Code::Bfloat ? "bfloat"
                           : code == Code::Bool   ? "bool"
                                                  : "numbers of another kind, bits: ";
        return kind + (code == Code::Bool ? "" : std::to_string(dtype.bits));
    }

    nb::dlpack::dltensor view_{};
    bool described_ = false;
    inline static const ExchangeApi* api_ = nullptr;
    inline static PyTypeObject* type_ = nullptr;
};

}  // namespace leankv

namespace nanobind::detail {

template <>
struct type_caster<leankv::Tensor> {
    NB_TYPE_CASTER(leankv::Tensor, const_name("torch.Tensor"))

    bool from_python(handle object, uint8_t, cleanup_list*) noexcept { return value.take(object); }
};

}  // namespace nanobind::detail
